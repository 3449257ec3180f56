"""What the values of label pictures mean, as data sets and mapping files say."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
import re
from typing import Any

import cv2
from dense_perception.arrays import Labels
from dense_perception.data.flow_files import read_content
from dense_perception.data.picture_files import read_pixels
from dense_perception.errors import InputError
from dense_perception.labels import (
    CITYSCAPES_IDS,
    Instances,
    INSTANCES_PER_CLASS,
    LABEL_SETS,
    LabelClass,
    LabelSet,
    UNLABELLED,
)
import numpy as np
from numpy.typing import NDArray
import yaml

Color = tuple[int, int, int]  # RGB


def _instances(ids: NDArray[np.int64], numbers: NDArray[np.int64]) -> Instances:
    """Join label ids and numbers of objects, negative where there is none."""
    classes = np.array([CITYSCAPES_IDS.get(value, UNLABELLED) for value in ids.tolist()])
    found = (numbers >= 0) & (classes != UNLABELLED)
    return np.where(found, classes * INSTANCES_PER_CLASS + numbers, -1).astype(np.int32)


# Of every 16-bit value: Cityscapes numbers its objects from 0, KITTI from 1.
_VALUES = np.arange(1 << 16)
_CITYSCAPES_INSTANCES = _instances(_VALUES // 1000, np.where(_VALUES > 1000, _VALUES % 1000, -1))
_KITTI_INSTANCES = _instances(_VALUES // 256, np.where(_VALUES % 256 > 0, _VALUES % 256, -1))

IGNORE = 'ignore'  # what a mapping file gives for a value that is not evaluated
_SHOWN = 10  # unknown values that an error lists


@dataclass(frozen=True, eq=False)
class LabelCoding:
    """
    The class that every value, or every colour, of a label picture stands for.

    A value that it does not know is an error and not unlabelled: it tells that the coding is that
    of other files.
    """

    # (65536,) uint16 per value or (2**24,) per colour: class index + 1, 0 where unknown. Memory
    # that stays zero is not taken.
    table: NDArray[np.uint16]
    of_colors: bool

    @classmethod
    def of_values(cls, meaning: Mapping[int, int]) -> 'LabelCoding':
        """Return the coding of one 8- or 16-bit channel; class index or 255 per value."""
        table = np.zeros(1 << 16, np.uint16)
        table[list(meaning)] = np.array(list(meaning.values())) + 1
        return cls(table, of_colors=False)

    @classmethod
    def of_rgb(cls, meaning: Mapping[Color, int]) -> 'LabelCoding':
        """Return the coding of pictures in colour; class index or 255 per RGB colour."""
        table = np.zeros(1 << 24, np.uint16)
        places = [red << 16 | green << 8 | blue for red, green, blue in meaning]
        table[places] = np.array(list(meaning.values())) + 1
        return cls(table, of_colors=True)

    def read(self, path: Path) -> Labels:
        """
        Read a label picture.

        :returns: (H, W) uint8 class indices, 255 where not evaluated.
        :raises InputError: missing, of another kind, or it has values of unknown meaning.
        """
        codes = _read_colors(path) if self.of_colors else read_values(path)
        found = self.table.take(codes)  # faster than an index
        if not found.all():
            unknown = found == 0
            values = np.unique(codes[unknown]).tolist()
            shown = ', '.join(self._written(value) for value in values[:_SHOWN])
            more = f' and {len(values) - _SHOWN} more' if len(values) > _SHOWN else ''
            raise InputError(
                f'{path}: label {"colours" if self.of_colors else "ids"} {shown}{more} are '
                f'unknown ({int(unknown.sum())} pixels); known are {self._known()}'
            )
        return (found - 1).astype(np.uint8)

    def _known(self) -> str:
        values = np.flatnonzero(self.table)
        shown = ', '.join(self._written(value) for value in values[:40].tolist())
        return f'{shown}, ...' if len(values) > 40 else shown

    def _written(self, value: int) -> str:
        return f'#{value:06x}' if self.of_colors else str(value)


def read_mapping(path: Path) -> tuple[LabelCoding, LabelSet]:
    """
    Read a mapping file: what the label pictures of a folder mean.

    It names a label set under `label_set`, and under `labels` the class of each raw value (`7`) or
    each RGB colour (`'#804080'` or `128, 64, 128`); `ignore` where it is not evaluated. A label
    set of one's own has a name that is not taken, and the colour of each class under `classes`.

    :raises InputError: not such a file, or it names an unknown set or class.
    """
    try:
        content = yaml.safe_load(read_content(path).decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f'{path}: no YAML: {error}') from error
    if not isinstance(content, dict) or set(content) - {'classes'} != {'label_set', 'labels'}:
        raise InputError(
            f'{path}: it must have exactly the keys label_set and labels, and classes where the '
            'label set is your own'
        )
    if not isinstance(content['labels'], dict) or not content['labels']:
        raise InputError(f'{path}: labels must map a raw value or a colour to a class or {IGNORE}')
    try:
        label_set = _label_set(content['label_set'], content.get('classes'))
        return _coding(content['labels'], label_set), label_set
    except InputError as error:
        raise InputError(f'{path}: {error}') from error


def _label_set(name: object, classes: object) -> LabelSet:
    """Return a known label set, or one of the user's own classes."""
    known = ', '.join(LABEL_SETS)
    if classes is None:
        if name not in tuple(LABEL_SETS):
            raise InputError(
                f'label_set is {name!r}; known are {known}, and one of your own has classes'
            )
        return LABEL_SETS[str(name)]
    if not isinstance(name, str) or not name or name in LABEL_SETS:
        raise InputError(f'label_set is {name!r}; your own needs a name other than {known}')
    if not isinstance(classes, dict) or not 0 < len(classes) < UNLABELLED or IGNORE in classes:
        raise InputError(
            f'classes must map 1 to {UNLABELLED - 1} names, none of them {IGNORE}, to colours'
        )
    return LabelSet(
        name, tuple(LabelClass(str(title), _color(color)) for title, color in classes.items())
    )


def cityscapes_instances(path: Path) -> Instances:
    """
    Read the objects of a Cityscapes `instanceIds` picture.

    :returns: (H, W) int32; -1 where there is no single object or its class is not evaluated.
    :raises InputError: missing, or not one 8- or 16-bit channel.
    """
    return _CITYSCAPES_INSTANCES[read_values(path)]


def kitti_instances(path: Path) -> Instances:
    """
    Read the objects of a KITTI `instance` picture: label id * 256 + number, from 1 on.

    :returns: (H, W) int32; -1 where there is no single object or its class is not evaluated.
    :raises InputError: missing, or not one 8- or 16-bit channel.
    """
    return _KITTI_INSTANCES[read_values(path)]


def read_values(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """
    Read a picture of one 8- or 16-bit channel, its values as they are.

    :raises InputError: missing, cannot be decoded, or of another kind.
    """
    values = read_pixels(path, cv2.IMREAD_UNCHANGED)
    if values.ndim != 2 or values.dtype not in (np.uint8, np.uint16):
        raise InputError(
            f'{path}: {_kind(values)}; it must have one 8- or 16-bit channel of label ids'
            ' (a palette counts as colours)'
        )
    return values


def _read_colors(path: Path) -> NDArray[np.uint32]:
    """Read a label picture in colour as one number per pixel, 0xRRGGBB; alpha does not count."""
    picture = read_pixels(path, cv2.IMREAD_UNCHANGED)
    if picture.ndim != 3 or picture.dtype != np.uint8:
        raise InputError(f'{path}: {_kind(picture)}; it must have three 8-bit channels of colour')
    blue, green, red = (picture[:, :, channel].astype(np.uint32) for channel in range(3))
    return np.asarray(red << 16 | green << 8 | blue, np.uint32)


def _kind(picture: NDArray[Any]) -> str:
    return f'{1 if picture.ndim == 2 else picture.shape[2]} channels of {picture.dtype}'


def _coding(labels: Mapping[Any, Any], label_set: LabelSet) -> LabelCoding:
    classes = {
        key: UNLABELLED if name == IGNORE else label_set.index(str(name))
        for key, name in labels.items()
    }
    values = {key: index for key, index in classes.items() if type(key) is int}
    if not values:
        return LabelCoding.of_rgb({_color(key): index for key, index in classes.items()})
    if len(values) < len(classes):
        raise InputError('labels has both values and colours; a picture has one or the other')
    outside = [value for value in values if not 0 <= value < 1 << 16]
    if outside:
        raise InputError(f'raw value {outside[0]} does not fit 16 bits')
    return LabelCoding.of_values(values)


def _color(text: object) -> Color:
    written = str(text)
    if re.fullmatch('#[0-9a-fA-F]{6}', written):
        red, green, blue = bytes.fromhex(written[1:])
        return red, green, blue
    parts = re.fullmatch(r'(\d{1,3}),? +(\d{1,3}),? +(\d{1,3})', written)
    if not parts or max(map(int, parts.groups())) > 255:
        raise InputError(
            f"{text!r} is neither a raw value nor a colour such as '#804080' or 128, 64, 128"
        )
    red, green, blue = map(int, parts.groups())
    return red, green, blue
