"""Labels and flow as pictures for people."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
from dense_perception.arrays import Flow, Image, Labels
from dense_perception.errors import InputError
from dense_perception.labels import LabelSet
import numpy as np
from numpy.typing import NDArray

# Colours from one hue to the next, going round: Baker et al. (2011), the Middlebury colour code.
_HUES = (
    ('red', 'yellow', 15),
    ('yellow', 'green', 6),
    ('green', 'cyan', 4),
    ('cyan', 'blue', 11),
    ('blue', 'magenta', 13),
    ('magenta', 'red', 6),
)
_CORNERS = {
    'red': (255, 0, 0),
    'yellow': (255, 255, 0),
    'green': (0, 255, 0),
    'cyan': (0, 255, 255),
    'blue': (0, 0, 255),
    'magenta': (255, 0, 255),
}
# A legend on a picture: rows in a picture's height, least pixels of a row that can be read, least
# size of a picture that has room for one.
_ROWS, _LEAST_ROW, _LEAST_WIDTH, _LEAST_HEIGHT = 25, 13, 160, 120
_FONT = cv2.FONT_HERSHEY_SIMPLEX
# Steps in which flow is painted, fine enough for no colour to be off by more than two of 255.
_LENGTHS, _DIRECTIONS = 256, 2048


def color_labels(labels: Labels, label_set: LabelSet) -> Image:
    """Paint each label in its colour; black where there is none."""
    return np.take(label_set.palette(), labels, axis=0, mode='clip')  # faster than an index


def overlay_labels(image: Image, labels: Labels, label_set: LabelSet, opacity: float) -> Image:
    """Paint labels over their image; pixels without a label stay as they are."""
    painted = cv2.addWeighted(color_labels(labels, label_set), opacity, image, 1 - opacity, 0)
    unlabelled = labels >= len(label_set)
    if unlabelled.any():
        painted[unlabelled] = image[unlabelled]
    return np.asarray(painted, np.uint8)


def write_legend(
    picture: Image, labels: Labels, label_set: LabelSet, texts: Sequence[str]
) -> None:
    """
    Write texts, and the classes that are in a picture, into a darker strip at its top.

    The strip takes a quarter of the picture at most, or what the texts take. Where that is too
    little, the classes with the fewest pixels are only counted. A picture that is too small for
    words stays as it is.

    :param picture: (H, W, 3) uint8 RGB; is written into.
    :param labels: (H, W) uint8 class indices.
    :param texts: ASCII; none is broken.
    """
    height, width = picture.shape[:2]
    if height < _LEAST_HEIGHT or width < _LEAST_WIDTH:
        return
    row = max(_LEAST_ROW, round(min(height, width * 3 / 4) / _ROWS))  # pixels
    counts = cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel()[: len(label_set)]
    by_size = [int(index) for index in np.argsort(-counts, kind='stable') if counts[index]]
    limit = (height // 4 - row // 4) // row
    for kept in range(len(by_size), -1, -1):
        entries = _entries(label_set, sorted(by_size[:kept]), len(by_size) - kept, texts)
        places = _in_rows([_entry_width(entry, row) for entry in entries], width)
        if places[-1][1] < limit:
            break
    strip = picture[: (places[-1][1] + 1) * row + row // 4]
    cv2.convertScaleAbs(strip, strip, 0.4)
    for (name, color), (x, line) in zip(entries, places, strict=True):
        _write_entry(strip, name, color, (x + row // 4, line * row), row)


_Entry = tuple[str, tuple[int, int, int] | None]  # a name, and the colour beside it


def _entries(
    label_set: LabelSet, shown: Sequence[int], left_out: int, texts: Sequence[str]
) -> list[_Entry]:
    """Return what a legend holds."""
    classes = [label_set.classes[index] for index in shown]
    words = [(text, None) for text in texts]
    rest = [(f'+{left_out}', None)] if left_out else []
    return [*words, *((entry.name, entry.color) for entry in classes), *rest]


def _text_scale(row: int) -> float:
    """Return the size of the font that fits a row of so many pixels."""
    return row / 34  # at scale 1 letters reach from 22 pixels above the base line to 9 below


def _entry_width(entry: _Entry, row: int) -> int:
    """Return the pixels that an entry of a legend takes, with the gap after it."""
    (width, _), _ = cv2.getTextSize(entry[0], _FONT, _text_scale(row), 1)
    return int(width) + (row if entry[1] else 0) + row * 2 // 3


def _in_rows(widths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Return where entries begin, as pixels and rows; each row is filled before the next."""
    places, x, line = [], 0, 0
    for entry in widths:
        if x and x + entry > width:
            x, line = 0, line + 1
        places.append((x, line))
        x += entry
    return places


def _write_entry(
    strip: Image, name: str, color: tuple[int, int, int] | None, corner: tuple[int, int], row: int
) -> None:
    """Write a name, behind a field of its colour if it has one, from the upper left corner on."""
    x, y = corner
    if color is not None:
        side = row * 2 // 3
        ends = (x, y + row // 3), (x + side, y + row // 3 + side)
        cv2.rectangle(strip, *ends, color, -1)
        cv2.rectangle(strip, *ends, (255, 255, 255), 1)
        x += row
    base, thick = (x, y + row - row // 8), max(1, row // 16)
    # A smooth outline takes three times as long and looks the same on the dark.
    for ink, pen, line in (((0,) * 3, thick + 2, cv2.LINE_8), ((255,) * 3, thick, cv2.LINE_AA)):
        cv2.putText(strip, name, base, _FONT, _text_scale(row), ink, pen, line)


def color_flow(flow: Flow, range_px: float = 0.0) -> Image:
    """
    Paint flow in the Middlebury colours: hue is direction, saturation is length.

    :param flow: (H, W, 2) float32 in pixels.
    :param range_px: length that has full colour; longer flow is darker. 0 takes the largest.
    """
    length, angle = cv2.cartToPolar(flow[..., 0], flow[..., 1])
    largest = range_px or max(float(length.max()), 1e-6)
    scaled = length * (_LENGTHS / largest)
    # The largest one itself may come out a little longer.
    rows = np.where(scaled > _LENGTHS + 1e-3, _LENGTHS + 1, scaled + 0.5).astype(np.int32)
    columns = (angle * (_DIRECTIONS / (2 * np.pi)) + 0.5).astype(np.int32) % _DIRECTIONS
    places = rows * _DIRECTIONS + columns
    painted = np.take(_flow_palette(), places, mode='clip').view(np.uint8)
    return np.asarray(
        cv2.cvtColor(painted.reshape(*places.shape, 4), cv2.COLOR_RGBA2RGB), np.uint8
    )


@cache
def _flow_palette() -> NDArray[np.uint32]:
    """
    Return colours of flow, of which one is a 32-bit number: red, green, blue, nothing.

    :returns: those of lengths from none to full, then of longer ones, each for all directions.
    """
    wheel = _color_wheel()
    place = np.arange(_DIRECTIONS) * (len(wheel) // 2) / _DIRECTIONS  # the table goes round twice
    low = place.astype(np.int32)
    share = (place - low)[:, None]
    color = wheel[low] * (1 - share) + wheel[low + 1] * share  # (directions, 3), 0 to 255
    inside = 255 - np.linspace(0, 1, _LENGTHS + 1)[:, None, None] * (255 - color)
    table = np.concatenate([inside, color[None] * 0.75])
    padded = np.pad(table, ((0, 0), (0, 0), (0, 1)))
    return np.ascontiguousarray(padded.astype(np.uint8)).view(np.uint32).ravel()


def _color_wheel() -> NDArray[np.float32]:
    """Colours of directions, from right, clockwise in the image, (110, 3), twice around."""
    parts = []
    for start, end, steps in _HUES:
        share = np.arange(steps)[:, None] / steps
        parts.append(np.array(_CORNERS[start]) * (1 - share) + np.array(_CORNERS[end]) * share)
    wheel = np.concatenate(parts)
    return np.concatenate([wheel, wheel]).astype(np.float32)


def panel(pictures: Sequence[tuple[str, Image]], height: int = 240) -> Image:
    """Put pictures side by side at one height, each with its title above."""
    columns = []
    for title, picture in pictures:
        width = max(1, round(picture.shape[1] * height / picture.shape[0]))
        small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        head = np.full((24, width, 3), 255, np.uint8)
        cv2.putText(head, title, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        columns.append(np.vstack([head, small]))
    return np.hstack(columns)


def legend(label_set: LabelSet, width: int) -> Image:
    """Name the classes in their colours, in as many rows as the width needs."""
    columns = max(1, width // 120)
    rows = -(-len(label_set) // columns)
    picture = np.full((rows * 20 + 4, width, 3), 255, np.uint8)
    for index, entry in enumerate(label_set.classes):
        x, y = (index % columns) * 120 + 4, (index // columns) * 20 + 4
        cv2.rectangle(picture, (x, y), (x + 14, y + 14), entry.color, -1)
        cv2.putText(
            picture,
            entry.name,
            (x + 20, y + 12),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.42,
            (0, 0, 0),
            1,
            cv2.LINE_AA,
        )
    return picture


def save_picture(path: Path, picture: Image) -> None:
    """
    Write an RGB picture; the suffix names the format.

    :raises InputError: it cannot be written.
    """
    try:
        written = cv2.imwrite(str(path), picture[:, :, ::-1])
    except cv2.error as error:
        raise InputError(f'{path}: cannot be written: {error.err}') from error
    if not written:
        raise InputError(f'{path}: cannot be written')


class Video:
    """An mp4 file of RGB pictures of one size; the first picture tells which."""

    def __init__(self, path: Path, rate_hz: float) -> None:
        self._path, self._rate_hz = path, rate_hz
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def __enter__(self) -> 'Video':
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()

    def add(self, picture: Image) -> None:
        """
        Append a picture, resized to the first one's size.

        :raises InputError: the file cannot be written.
        """
        if self._writer is None:
            self._size = (picture.shape[1] // 2 * 2, picture.shape[0] // 2 * 2)  # codecs want even
            codec = cv2.VideoWriter.fourcc(*'mp4v')
            self._writer = cv2.VideoWriter(str(self._path), codec, self._rate_hz, self._size)
            if not self._writer.isOpened():
                raise InputError(f'{self._path}: cannot be written')
        self._writer.write(cv2.resize(picture, self._size)[:, :, ::-1])
