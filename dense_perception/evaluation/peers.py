"""OpenCV's flow, to compare with."""

from collections.abc import Callable

import cv2
from dense_perception.arrays import Flow, Image
import numpy as np
from numpy.typing import NDArray


def dis(first: Image, second: Image) -> Flow:
    """Estimate flow by dense inverse search, medium preset; Kroeger et al. (2016)."""
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(method.calc(_grey(first), _grey(second), None), np.float32)  # type: ignore[call-overload]


def farneback(first: Image, second: Image) -> Flow:
    """Estimate flow by polynomial expansion with OpenCV's usual settings; Farneback (2003)."""
    flow = cv2.calcOpticalFlowFarneback(
        _grey(first),
        _grey(second),
        None,
        0.5,
        5,
        15,
        3,
        5,
        1.2,
        0,  # type: ignore[call-overload]
    )
    return np.asarray(flow, np.float32)


PEERS: dict[str, Callable[[Image, Image], Flow]] = {'DIS': dis, 'Farneback': farneback}


def _grey(image: Image) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
