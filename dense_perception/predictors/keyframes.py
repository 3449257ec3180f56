"""Labels of every k-th frame, carried along the flow to the frames between."""

import cv2
from dense_perception.arrays import Flow, Labels
from dense_perception.errors import InputError, SettingError
from dense_perception.labels import UNLABELLED
import numpy as np
from numpy.typing import NDArray

_WARPED_AT_ONCE = 32766  # rows or columns that cv2.remap takes


def carry_labels(labels: Labels, flow: Flow) -> Labels:
    """
    Move labels of one frame to the next.

    A pixel of the next frame takes the label of where it came from, the nearest pixel. Where it
    came from is told by the flow that starts at the same place, as flow changes little over its
    own length but at the borders of what moves. What came from beyond the image has no label.

    :param labels: (H, W) uint8 of the first frame.
    :param flow: (H, W, 2) float32 from the first frame to the second, pixels.
    :returns: (H, W) uint8 of the second frame; 255 where nothing is known.
    :raises InputError: sizes differ, or are more than 32766.
    """
    height, width = labels.shape
    if flow.shape != (height, width, 2):
        raise InputError(
            f'labels are {labels.shape}, flow is {flow.shape}; rows and columns must be equal'
        )
    if max(height, width) > _WARPED_AT_ONCE:
        raise InputError(f'labels are {labels.shape}; at most {_WARPED_AT_ONCE} pixels each way')
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    horizontal, vertical = _source(columns, flow[..., 0]), _source(rows, flow[..., 1])
    carried = cv2.remap(
        np.ascontiguousarray(labels),
        horizontal,
        vertical,
        cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=UNLABELLED,
    )
    return np.asarray(carried, np.uint8)


def _source(place: NDArray[np.float32], moved: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the whole pixel that something came from; outside for what is no number."""
    # remap itself would round to 1/32 of a pixel first.
    source = np.rint(np.nan_to_num(place - moved, nan=-1e4, posinf=-1e4, neginf=-1e4))
    return source.clip(-1e4, 1e5).astype(np.float32)


class Keyframes:
    """
    Says which frames are labelled by the network, and carries labels to the others.

    `due` before each frame; then `set` with its labels, or `carry` with the flow to it from the
    frame before. Not for several threads, nor several cameras.
    """

    def __init__(self, interval: int) -> None:
        """
        Start with a keyframe.

        :param interval: every how many frames the network labels one; 1: all.
        :raises SettingError: it is below 1.
        """
        self.interval = interval
        self._labels: Labels | None = None  # of the newest frame
        self._age = 0  # frames since the keyframe

    @property
    def interval(self) -> int:
        """Every how many frames the network labels one."""
        return self._interval

    @interval.setter
    def interval(self, interval: int) -> None:
        if interval < 1:
            raise SettingError(f'keyframe interval is {interval}; it must be 1 or more')
        self._interval = interval

    @property
    def age(self) -> int:
        """Frames since the network labelled one; 0 for a keyframe."""
        return self._age

    def due(self, shape: tuple[int, ...]) -> bool:
        """
        Whether the next frame is to be labelled by the network.

        :param shape: of the frame; another size than before begins anew.
        """
        return (
            self._labels is None
            or self._labels.shape != shape[:2]
            or self._age + 1 >= self._interval
        )

    def set(self, labels: Labels) -> None:
        """Take the network's labels of a frame, (H, W) uint8."""
        self._labels, self._age = labels, 0

    def carry(self, flow: Flow) -> Labels:
        """
        Return labels of the next frame: the newest ones moved along the flow.

        :param flow: (H, W, 2) float32 from the frame before to this one, pixels.
        :returns: (H, W) uint8; 255 where what is seen was beyond the image before.
        :raises InputError: there are no labels yet, or sizes differ.
        """
        if self._labels is None:
            raise InputError('no frame has been labelled yet; its labels are needed first')
        self._labels = carry_labels(self._labels, flow)
        self._age += 1
        return self._labels

    def reset(self) -> None:
        """Begin anew: the next frame is a keyframe, as after a gap in time."""
        self._labels, self._age = None, 0
