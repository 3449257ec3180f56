"""From label images and their truth to a report."""

from collections.abc import Iterable
from dataclasses import dataclass

from dense_perception.arrays import Labels
from dense_perception.labels import LabelSet
from dense_perception.metrics.segmentation import ConfusionMatrix


@dataclass(frozen=True)
class SegmentationReport:
    """Accuracy of labels over a whole set of images; nan where nothing could be compared."""

    images: int
    mean_iou: float
    pixel_accuracy: float
    iou: dict[str, float]  # per class; nan for a class that neither truth nor estimate has


def evaluate_segmentation(
    pairs: Iterable[tuple[Labels, Labels]], label_set: LabelSet
) -> SegmentationReport:
    """
    Compare label images with their truth.

    :param pairs: estimate and truth of each image, both in `label_set`.
    :raises InputError: an estimate differs in size from its truth.
    """
    matrix = ConfusionMatrix(len(label_set))
    images = 0
    for images, (estimate, truth) in enumerate(pairs, 1):  # noqa: B007
        matrix.add(estimate, truth)
    iou = {name: float(value) for name, value in zip(label_set.names, matrix.iou, strict=True)}
    return SegmentationReport(images, matrix.mean_iou, matrix.pixel_accuracy, iou)
