"""IoU in which near objects weigh no more than far ones; Cordts et al. (2016), section 4.2."""

from collections.abc import Mapping
from dataclasses import dataclass, field
import math
from typing import Any

from dense_perception.arrays import Labels
from dense_perception.errors import InputError
from dense_perception.labels import Instances, INSTANCES_PER_CLASS, LabelSet
from dense_perception.metrics.segmentation import ConfusionMatrix, stored
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tally:
    """All instances of one class and one area."""

    instances: int = 0
    right: int = 0  # their pixels whose class is right
    right_category: int = 0  # their pixels whose category is right

    def __add__(self, other: 'Tally') -> 'Tally':
        return Tally(
            self.instances + other.instances,
            self.right + other.right,
            self.right_category + other.right_category,
        )


@dataclass
class InstanceCounts:
    """
    How much of every instance was labelled right, over every image added.

    In the instance-weighted IoU a pixel of an instance weighs the mean area of its class over the
    area of the instance. Pixels wrongly taken for a class have no instance and weigh one; they
    come from the confusion matrix of the same images. The figures are those of cityscapesscripts
    for predictions in the evaluated classes; there, a caravan or trailer may be predicted, too,
    and counts as a vehicle.
    """

    label_set: LabelSet
    mean_area: Mapping[str, float]  # pixels, per name of a class that has instances
    # Keyed by class index and area in pixels: integers, so that parts of a set add up exactly.
    tallies: dict[tuple[int, int], Tally] = field(default_factory=dict)

    def add(self, prediction: Labels, instances: Instances) -> None:
        """
        Count the instances of one image.

        :param prediction: (H, W) uint8 class indices.
        :param instances: (H, W) int32, as `labels.Instances` says. Classes without a mean area do
            not count.
        :raises InputError: the two differ in shape.
        """
        if prediction.shape != instances.shape:
            raise InputError(
                f'prediction is {prediction.shape}, instances are {instances.shape}; '
                'sizes must match'
            )
        inside = instances >= 0
        found, predicted = instances[inside], prediction[inside]
        true = found // INSTANCES_PER_CLASS
        category = self._category_of_value()
        area = np.bincount(found)
        right = np.bincount(found[predicted == true], minlength=area.size)
        alike = category[predicted] == category[np.minimum(true, 255)]
        right_category = np.bincount(found[alike], minlength=area.size)
        counted = self._counted_classes()
        for instance in np.flatnonzero(area).tolist():
            if instance // INSTANCES_PER_CLASS in counted:
                key = (instance // INSTANCES_PER_CLASS, int(area[instance]))
                tally = Tally(1, int(right[instance]), int(right_category[instance]))
                self.tallies[key] = self.tallies.get(key, Tally()) + tally

    def __add__(self, other: 'InstanceCounts') -> 'InstanceCounts':
        if self.label_set != other.label_set or self.mean_area != other.mean_area:
            raise InputError('instances of different label sets or mean areas do not add')
        tallies = dict(self.tallies)
        for key, tally in other.tallies.items():
            tallies[key] = tallies.get(key, Tally()) + tally
        return InstanceCounts(self.label_set, self.mean_area, tallies)

    def iou(self, matrix: ConfusionMatrix) -> dict[str, float]:
        """
        Instance-weighted IoU of every class that has instances; nan where there was nothing.

        :param matrix: of the same images; `label_set`'s classes.
        """
        wrong = matrix.false_positives
        return {
            name: self._weighted_iou([index], int(wrong[index]), of_category=False)
            for index, name in sorted(self._counted_classes().items())
        }

    def category_iou(self, matrix: ConfusionMatrix) -> dict[str, float]:
        """
        Instance-weighted IoU of every category whose classes all have instances.

        :param matrix: of the same images; `label_set`'s classes.
        """
        categories, counted = self.label_set.categories, self._counted_classes()
        wrong = matrix.grouped(list(categories.values())).false_positives
        return {
            name: self._weighted_iou(members, int(wrong[row]), of_category=True)
            for row, (name, members) in enumerate(categories.items())
            if set(members) <= set(counted)
        }

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain numbers: class, area, instances, right, right category."""
        return {
            'label_set': self.label_set.name,
            'tallies': [
                [*key, tally.instances, tally.right, tally.right_category]
                for key, tally in sorted(self.tallies.items())
            ],
        }

    @classmethod
    def from_json(
        cls, content: Mapping[str, Any], label_set: LabelSet, mean_area: Mapping[str, float]
    ) -> 'InstanceCounts':
        """
        Return the counts that `to_json` gave.

        :raises InputError: a key is missing, a row has another form, or they are of another set.
        """
        if stored(content, 'label_set', str) != label_set.name:
            raise InputError(f'stored metric is of {content["label_set"]}, not {label_set.name}')
        rows = stored(content, 'tallies', list)
        if any(
            not isinstance(row, list) or [type(number) for number in row] != [int] * 5
            for row in rows
        ):
            raise InputError('stored metric: every row of tallies must be five integers')
        tallies = {(row[0], row[1]): Tally(*row[2:]) for row in rows}
        return cls(label_set, mean_area, tallies)

    def _weighted_iou(
        self, classes: list[int] | tuple[int, ...], wrong: int, *, of_category: bool
    ) -> float:
        right, missed = [], []
        for (index, area), tally in self.tallies.items():
            if index in classes:
                weight = self.mean_area[self.label_set.names[index]] / area
                pixels = tally.right_category if of_category else tally.right
                right.append(pixels * weight)
                missed.append((tally.instances * area - pixels) * weight)
        # math.fsum rounds once, whatever the order.
        union = math.fsum(right) + wrong + math.fsum(missed)
        return math.fsum(right) / union if union else math.nan

    def _counted_classes(self) -> dict[int, str]:
        return {self.label_set.index(name): name for name in self.mean_area}

    def _category_of_value(self) -> NDArray[np.int64]:
        """Category per label value; a value of its own where there is none, equal to no other."""
        table = np.arange(1000, 1256)
        for number, members in enumerate(self.label_set.categories.values()):
            table[list(members)] = number
        return table
