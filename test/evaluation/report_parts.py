"""Reports of small scenes; the tests of reports run this file."""

from collections.abc import Sequence

from dense_perception.evaluation.report import Report
from dense_perception.evaluation.report_records import (
    FrameRecord,
    LabelCounts,
    ModelRecord,
    Problem,
    RunRecord,
    SegmentationCounts,
    SourceRecord,
)
from dense_perception.labels import CITYSCAPES, CITYSCAPES_INSTANCE_AREA, INSTANCES_PER_CLASS
from dense_perception.metrics.boundary import BoundaryMatches
from dense_perception.metrics.calibration import Calibration
from dense_perception.metrics.flow import FlowErrors
from dense_perception.metrics.instances import InstanceCounts
from dense_perception.metrics.segmentation import ConfusionMatrix
from dense_perception.metrics.temporal import TemporalConsistency
import numpy as np

CLASSES = len(CITYSCAPES)


def scene(number: int, wrong: float):
    """Return true labels, estimated ones of which a share is wrong, and their confidence."""
    random = np.random.default_rng(number)
    truth = random.integers(0, CLASSES, (3, 4), np.uint8).repeat(4, 0).repeat(4, 1)
    guess = random.integers(0, CLASSES, truth.shape, np.uint8)
    labels = np.where(random.random(truth.shape) < wrong, guess, truth).astype(np.uint8)
    truth[0] = 255
    return truth, labels, random.integers(100, 256, truth.shape, np.uint8)


def part(
    numbers: Sequence[int],
    *,
    wrong: float = 0.4,
    error_px: float = 2.0,
    source: str = 'town',
    run: RunRecord = RunRecord(),  # noqa: B008 (it is frozen)
) -> Report:
    """Evaluate some scenes; a scene is the same whatever part it is in."""
    counts = SegmentationCounts(
        ConfusionMatrix(CLASSES),
        InstanceCounts(CITYSCAPES, CITYSCAPES_INSTANCE_AREA),
        BoundaryMatches(CLASSES, 1.0),
        Calibration(CLASSES),
    )
    flow, temporal, frames = FlowErrors(), TemporalConsistency(CLASSES), []
    for number in numbers:
        truth, labels, confidence = scene(number, wrong)
        matrix, errors = ConfusionMatrix(CLASSES), FlowErrors()
        matrix.add(labels, truth)
        counts.instances.add(
            labels, np.where(truth < 255, truth.astype(np.int32) * INSTANCES_PER_CLASS + 1, -1)
        )
        counts.boundary.add(labels, truth)
        counts.calibration.add(labels, confidence, truth)
        random = np.random.default_rng(number)
        true_flow = random.normal(0, 20, (*truth.shape, 2)).astype(np.float32)
        known = random.random(truth.shape) < 0.9
        errors.add(
            true_flow + np.float32(error_px * random.random()),
            true_flow,
            known,
            known & (truth > 9),
        )
        temporal.add(truth, labels, np.zeros_like(true_flow), known)
        counts = counts + SegmentationCounts(matrix)
        flow = flow + errors
        frames.append(
            FrameRecord(
                source,
                f'{number:06d}',
                number * 100_000_000,
                LabelCounts.of(matrix),
                errors['all'],
                20.0 + number,
            )
        )
    return Report(
        CITYSCAPES,
        (ModelRecord('segmentation', 'drive', 'context', 'a1' * 32),),
        (SourceRecord(source, 'segmentation', ('/camera',), len(frames)),),
        (Problem(source, '/camera', 'a message cannot be read'),),
        counts,
        flow,
        temporal,
        tuple(frames),
        run=run,
    )
