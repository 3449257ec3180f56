"""Refine flow by the brightness of the two images: the `+v` of FlowNet's tables."""

import cv2
from dense_perception.arrays import Flow, Image
from dense_perception.errors import InputError, SettingError
from dense_perception.settings import FLOW_REFINEMENTS
import numpy as np

# Enlargement of the flow's grid that each pass works on, and its fixed-point iterations: 20 from
# a quarter of the size on, then 5 at full size. Dosovitskiy et al. (2015), section 4.
PASSES = ((1 / 4, 10), (1 / 2, 10), (1.0, 5))
SWEEPS = 20  # of successive over-relaxation in each iteration; OpenCV's 5 leave a shift half done
_SMALLEST = 2  # rows and columns that the solver needs


def refine_flow(first: Image, second: Image, flow: Flow) -> Flow:
    """
    Minimise a variational energy of brightness, gradient and smoothness, starting from a flow.

    Dosovitskiy et al. (2015), section 4, from coarse to fine; the energy and its solver are those
    of Brox et al. (2004) in OpenCV, without the paper's weights at detected edges.

    :param first: (H, W, 3) uint8 RGB.
    :param second: the same shape.
    :param flow: (H, W, 2) float32 from the first to the second, pixels.
    :returns: the same shape; a new array.
    :raises InputError: sizes differ.
    """
    if not first.shape == second.shape == (*flow.shape[:2], 3):
        raise InputError(
            f'images are {first.shape} and {second.shape}, flow is {flow.shape}; '
            'rows and columns must be equal'
        )
    height, width = flow.shape[:2]
    images = [
        cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY) for image in (first, second)
    ]
    refined = flow
    for share, iterations in PASSES:
        size = round(width * share), round(height * share)
        if min(size) < _SMALLEST:
            continue
        start = resized_flow(refined, size)
        small = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]
        solver = cv2.VariationalRefinement.create()
        solver.setFixedPointIterations(iterations)
        solver.setSorIterations(SWEEPS)
        change = solver.calc(small[0], small[1], start.copy()) - start
        # Only what changed is enlarged, so that what the network sees finely is not blurred.
        refined = refined + resized_flow(change, (width, height))
    return refined.astype(np.float32, copy=refined is flow)


def resized_flow(flow: Flow, size: tuple[int, int]) -> Flow:
    """
    Return a flow on another grid, in pixels of that grid.

    :param size: columns and rows.
    """
    height, width = flow.shape[:2]
    smaller = size[0] < width
    resized = cv2.resize(flow, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    scale = np.array([size[0] / width, size[1] / height], np.float32)
    return np.ascontiguousarray(resized.reshape(size[1], size[0], 2) * scale, np.float32)


def check_flow_refinement(name: str) -> None:
    """
    Refuse a stage that does not exist.

    :raises SettingError: `name` is not in `FLOW_REFINEMENTS`.
    """
    if name not in FLOW_REFINEMENTS:
        known = ', '.join(FLOW_REFINEMENTS)
        raise SettingError(f'flow_refinement is {name!r}; it must be one of {known}')
