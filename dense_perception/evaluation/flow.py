"""From flow and its truth to a report."""

from collections.abc import Iterable
from dataclasses import dataclass

from dense_perception.arrays import Flow, Mask
from dense_perception.metrics.flow import EndPointError
import numpy as np


@dataclass(frozen=True)
class FlowReport:
    """Error of flow over every known pixel of a set of pairs; nan where there was none."""

    pairs: int
    end_point_error_px: float
    zero_flow_error_px: float  # what no flow at all would score: the mean length of the truth


def evaluate_flow(pairs: Iterable[tuple[Flow, Flow, Mask]]) -> FlowReport:
    """
    Compare flow with its truth.

    :param pairs: estimate, truth and where the truth is known, of each pair of images.
    :raises InputError: an estimate differs in size from its truth.
    """
    error, nothing = EndPointError(), EndPointError()
    count = 0
    for count, (estimate, truth, valid) in enumerate(pairs, 1):  # noqa: B007
        error.add(estimate, truth, valid)
        nothing.add(np.zeros_like(truth), truth, valid)
    return FlowReport(count, error.mean, nothing.mean)
