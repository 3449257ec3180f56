"""Images with objects told apart, and the windows around them that mask networks learn from."""

from collections.abc import Sequence
from dataclasses import dataclass
import math
from typing import overload

import cv2
from dense_perception.arrays import Image, Labels, Mask
from dense_perception.data.segmentation import LabelledImage
from dense_perception.labels import LabelSet
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

Objects = NDArray[np.int32]  # (H, W) number of the object from 1 on, 0 where there is none

CANONICAL = 92  # pixels of an object's longer side in the middle of a window; released code
SHIFT = 16.0  # pixels by which a window may be off; released code
OCTAVES = 0.25  # by which an object's size may be off; released code
_APART = 32.0  # pixels, or one octave, off every object; Pinheiro et al. (2015), section 3.2
_SMALLEST_AREA = 100  # pixels; released code
_SMALLEST_SIDE = 5
_TRIES = 100  # for a window without an object
_LEAST_SCALE, _GREATEST_SCALE = -3.0, 2.0  # octaves; released code
GREY = 128  # beyond the image


@dataclass(frozen=True)
class ObjectImage:
    """One image and the object that each of its pixels belongs to."""

    image: Image
    objects: Objects


@dataclass(frozen=True)
class Window:
    """A square of an image."""

    column: float  # of its middle, pixels
    row: float
    side: float  # pixels


@dataclass(frozen=True)
class Box:
    """Where one object is."""

    number: int
    column: float  # of its middle, pixels
    row: float
    longer: float  # side, pixels


class ObjectImages(Sequence[ObjectImage]):
    """
    Labelled images whose objects are the connected parts of some classes.

    Two touching objects of a class count as one, and one behind a pole as two.
    """

    def __init__(
        self, labelled: Sequence[LabelledImage], label_set: LabelSet, names: Sequence[str]
    ) -> None:
        """
        Choose the classes.

        :param names: classes of the label set whose pixels belong to objects.
        :raises InputError: the set has no class of a name.
        """
        self._labelled = labelled
        self._classes = [label_set.index(name) for name in names]

    def __len__(self) -> int:
        return len(self._labelled)

    @overload
    def __getitem__(self, index: int) -> ObjectImage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ObjectImage]: ...
    def __getitem__(self, index: int | slice) -> ObjectImage | Sequence[ObjectImage]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):  # how iteration learns that it is over
            raise IndexError(f'image {index} of {len(self)}')
        sample = self._labelled[index]
        return ObjectImage(sample.image, connected_objects(sample.labels, self._classes))


def connected_objects(labels: Labels, classes: Sequence[int]) -> Objects:
    """
    Tell the connected parts of the classes apart, by numbers from 1 on.

    :param labels: (H, W) uint8.
    :param classes: class indices; parts of two classes are two objects.
    """
    objects = np.zeros(labels.shape, np.int32)
    for index in classes:
        count, parts = cv2.connectedComponents((labels == index).astype(np.uint8))
        objects = np.where(parts > 0, parts + objects.max(), objects)
    return objects.astype(np.int32)


def boxes(objects: Objects) -> list[Box]:
    """Return the objects that are large enough to learn from, in the order of their numbers."""
    areas = np.bincount(objects.ravel())
    found = []
    for number, place in enumerate(find_objects(objects), 1):
        if place is None or areas[number] < _SMALLEST_AREA:
            continue
        rows, columns = place
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if min(height, width) < _SMALLEST_SIDE:
            continue
        column, row = columns.start + width / 2, rows.start + height / 2
        found.append(Box(number, column, row, float(max(height, width))))
    return found


def window_around(random: np.random.Generator, box: Box, side: int) -> Window:
    """
    Return a window with the object in its middle and of the right size, both up to a little.

    :param side: pixels of the window in which the object is to be CANONICAL pixels long.
    """
    scale = box.longer / CANONICAL * 2 ** random.uniform(-OCTAVES, OCTAVES)
    column, row = random.uniform(-SHIFT, SHIFT, 2) * scale
    return Window(box.column + column, box.row + row, side * scale)


def window_beside(
    random: np.random.Generator, present: Sequence[Box], size: tuple[int, int], side: int
) -> Window | None:
    """
    Return a window in whose middle is no object, or one of another size than the window's.

    :param present: the objects of the image.
    :param size: rows and columns of the image.
    :param side: as for `window_around`.
    :returns: None where chance finds none.
    """
    for _ in range(_TRIES):
        scale = 2 ** random.uniform(-_GREATEST_SCALE, -_LEAST_SCALE)  # image pixels per pixel
        row, column = random.uniform(0, size)
        if all(
            math.hypot(box.column - column, box.row - row) >= _APART * scale
            or abs(math.log2(box.longer / (CANONICAL * scale))) >= 1
            for box in present
        ):
            return Window(column, row, side * scale)
    return None


def cut_image(image: Image, window: Window, side: int) -> Image:
    """Return a window of an image, (side, side, 3); grey beyond the image."""
    return _cut(image, window, side, GREY)


def cut_mask(mask: Mask, window: Window, side: int) -> Mask:
    """Return a window of a mask, (side, side) bool; False beyond the image."""
    return _cut(mask.astype(np.uint8) * 255, window, side, 0) > 127


def _cut(picture: NDArray[np.uint8], window: Window, side: int, fill: int) -> NDArray[np.uint8]:
    width = max(1, round(window.side))
    left, top = round(window.column - width / 2), round(window.row - width / 2)
    inside = picture[max(0, top) : max(0, top + width), max(0, left) : max(0, left + width)]
    above, before = max(0, -top), max(0, -left)
    cut = np.full((width, width, *picture.shape[2:]), fill, np.uint8)
    cut[above : above + inside.shape[0], before : before + inside.shape[1]] = inside
    shrinks = cv2.INTER_AREA if width > side else cv2.INTER_LINEAR
    return cv2.resize(cut, (side, side), interpolation=shrinks).astype(np.uint8, copy=False)
