"""Which frames a report shows, and how."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import math
from typing import Any

import cv2
from dense_perception.arrays import Flow, Image, Labels, Mask
from dense_perception.data.pictures import color_flow, overlay_labels
from dense_perception.errors import InputError
from dense_perception.evaluation.report import Report
from dense_perception.evaluation.report_records import FrameRecord
from dense_perception.labels import LabelSet
import numpy as np
from numpy.typing import NDArray

_OPACITY = 0.6
_WRONG = (230, 30, 30)  # RGB
_UNKNOWN = (128, 128, 128)  # where there is no truth; neither colour code of flow has a grey
_LARGEST_ERROR_PX = 10.0  # brightest in the picture of a flow's error
_LEGEND_ROWS = 64
_WIDTH = 480  # columns of a picture in the page
_QUALITY = 82  # of JPEG

Pictures = Sequence[tuple[str, Image]]  # with their titles


@dataclass(frozen=True)
class FrameReader:
    """
    How the pictures of a frame are found again, once it is known which are shown.

    Each function takes a frame and reads and estimates it anew; it may use `label_pictures` or
    `flow_pictures`. None where a task was not evaluated.
    """

    labels: Callable[[FrameRecord], Pictures] | None = None
    flow: Callable[[FrameRecord], Pictures] | None = None


@dataclass(frozen=True)
class Choice:
    """A frame worth a look."""

    rank: str  # 'best', 'median' or 'worst'
    frame: FrameRecord
    value: float  # mean IoU of the frame, or its end-point error


def labelled_choices(report: Report) -> list[Choice]:
    """Choose the frames of best, median and worst mean IoU; fewer where there are not three."""
    values = [(frame.labels.mean_iou, frame) for frame in report.frames if frame.labels]
    return _choices([entry for entry in values if not math.isnan(entry[0])], best_first=False)


def flow_choices(report: Report) -> list[Choice]:
    """Choose the frames of smallest, median and largest end-point error."""
    values = [(frame.flow.end_point_error_px, frame) for frame in report.frames if frame.flow]
    return _choices([entry for entry in values if not math.isnan(entry[0])], best_first=True)


def label_pictures(image: Image, truth: Labels, labels: Labels, label_set: LabelSet) -> Pictures:
    """
    Return an image, its true and its estimated labels over it, and the pixels that are wrong.

    :param image: (H, W, 3) uint8 RGB.
    :param truth: (H, W) uint8 class indices; other values are not labelled.
    :param labels: (H, W) uint8 class indices.
    """
    wrong = (truth != labels) & (truth < len(label_set))
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    errors = np.asarray(grey, np.uint8)
    errors[wrong] = _WRONG
    return (
        ('image', image),
        ('true labels', overlay_labels(image, truth, label_set, _OPACITY)),
        ('estimated labels', overlay_labels(image, labels, label_set, _OPACITY)),
        ('wrong pixels, red', errors),
    )


def flow_pictures(image: Image, truth: Flow, valid: Mask, flow: Flow) -> Pictures:
    """
    Return the first image of a pair, its true and its estimated flow, and the error.

    :param image: (H, W, 3) uint8 RGB.
    :param truth: (H, W, 2) float32, pixels; both flows have full colour at its largest length.
    :param valid: (H, W) bool; where `truth` is known. The rest is grey.
    :param flow: (H, W, 2) float32, pixels.
    """
    known = np.where(valid[..., None], truth, 0).astype(np.float32)
    finite = np.nan_to_num(flow)
    largest = max(float(np.linalg.norm(known, axis=-1).max()), 1.0)
    true_colors = color_flow(known, largest)
    true_colors[~valid] = _UNKNOWN
    errors = _color_errors(np.linalg.norm(finite - known, axis=-1))
    errors[~valid] = _UNKNOWN
    return (
        ('first image', image),
        (f'true flow, full colour at {largest:.1f} px', true_colors),
        ('estimated flow, darker beyond that', color_flow(finite, largest)),
        (f'error, brightest from {_LARGEST_ERROR_PX:.0f} px', errors),
    )


def flow_legend() -> Pictures:
    """Return keys to the pictures of flow: which colour is which direction, and which error."""
    side = np.linspace(-1, 1, _LEGEND_ROWS, dtype=np.float32)
    x, y = np.meshgrid(side, side)
    wheel = color_flow(np.dstack([x, y]), 1.0)
    wheel[np.hypot(x, y) > 1] = 255
    ramp = np.linspace(0, _LARGEST_ERROR_PX, 4 * _LEGEND_ROWS)
    bar = np.tile(_color_errors(ramp)[None], (_LEGEND_ROWS // 4, 1, 1))
    return (
        ('motion from the middle towards a colour; grey: true flow is not known', wheel),
        (f'error, 0 to {_LARGEST_ERROR_PX:.0f} px or more', bar),
    )


def _color_errors(distance: NDArray[Any]) -> Image:
    """Paint errors in pixels, (...) to (..., 3) uint8 RGB."""
    levels = np.minimum(distance * (255 / _LARGEST_ERROR_PX), 255).astype(np.uint8)
    painted = cv2.applyColorMap(np.atleast_2d(levels), cv2.COLORMAP_INFERNO)[..., ::-1]
    return np.asarray(painted, np.uint8).reshape(*distance.shape, 3).copy()


def data_uri(picture: Image) -> str:
    """
    Return an RGB picture, made smaller, as an address that holds it.

    :raises InputError: it is empty, or no RGB picture.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise InputError(f'picture is {picture.shape}; it must be (H, W, 3)')
    picture = smaller(picture)
    quality = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    content = cv2.imencode('.jpg', np.ascontiguousarray(picture[..., ::-1]), quality)[1]
    return f'data:image/jpeg;base64,{b64encode(content.tobytes()).decode()}'


def smaller(picture: Image) -> Image:
    """Return a picture that is no wider than the page shows it."""
    height, width = picture.shape[:2]
    if width <= _WIDTH:
        return picture
    size = (_WIDTH, max(1, round(height * _WIDTH / width)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)


def _choices(values: list[tuple[float, FrameRecord]], *, best_first: bool) -> list[Choice]:
    """Take the ends and the middle of the frames by value, each frame once."""
    ranked = sorted(
        values, key=lambda entry: (entry[0] if best_first else -entry[0], entry[1].key)
    )
    places = {'best': 0, 'worst': len(ranked) - 1, 'median': len(ranked) // 2}
    chosen: dict[int, str] = {}
    for rank, place in places.items():
        if 0 <= place < len(ranked):
            chosen.setdefault(place, rank)
    return [Choice(chosen[place], ranked[place][1], ranked[place][0]) for place in sorted(chosen)]
