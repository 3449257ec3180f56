"""
Label sets: what each class index means, and the colour in which people see it.

Label images are (H, W) uint8 class indices; 255 marks pixels without a label.
"""

from dataclasses import dataclass

from dense_perception.errors import InputError
import numpy as np
from numpy.typing import NDArray

UNLABELLED = 255  # ignored by every loss and metric

# (H, W); INSTANCES_PER_CLASS * class index + number of the object in its class, -1 where there is
# no single object.
Instances = NDArray[np.int32]
INSTANCES_PER_CLASS = 1000


@dataclass(frozen=True)
class LabelClass:
    """One class: its name, RGB colour, and the category it belongs to where the set has any."""

    name: str
    color: tuple[int, int, int]
    category: str = ''


@dataclass(frozen=True)
class LabelSet:
    """An ordered set of classes; a class index is its place in `classes`."""

    name: str
    classes: tuple[LabelClass, ...]

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in index order."""
        return tuple(entry.name for entry in self.classes)

    @property
    def categories(self) -> dict[str, tuple[int, ...]]:
        """Class indices of every category, in the order of their first class."""
        found: dict[str, tuple[int, ...]] = {}
        for index, entry in enumerate(self.classes):
            if entry.category:
                found[entry.category] = (*found.get(entry.category, ()), index)
        return found

    def index(self, name: str) -> int:
        """
        Index of a class.

        :raises InputError: the set has no class of that name.
        """
        if name not in self.names:
            raise InputError(f'{self.name} has no class {name!r}; it has {", ".join(self.names)}')
        return self.names.index(name)

    def palette(self) -> NDArray[np.uint8]:
        """RGB colour per label value, (256, 3) uint8; black where there is no class."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self.classes)] = [entry.color for entry in self.classes]
        return table


def _label_set(
    name: str,
    *rows: tuple[str, tuple[int, int, int]] | tuple[str, tuple[int, int, int], str],
) -> LabelSet:
    return LabelSet(name, tuple(LabelClass(*row) for row in rows))


# The 19 evaluated classes in trainId order; Cordts et al. (2016), colours and categories of
# cityscapesscripts.
CITYSCAPES = _label_set(
    'cityscapes',
    ('road', (128, 64, 128), 'flat'),
    ('sidewalk', (244, 35, 232), 'flat'),
    ('building', (70, 70, 70), 'construction'),
    ('wall', (102, 102, 156), 'construction'),
    ('fence', (190, 153, 153), 'construction'),
    ('pole', (153, 153, 153), 'object'),
    ('traffic light', (250, 170, 30), 'object'),
    ('traffic sign', (220, 220, 0), 'object'),
    ('vegetation', (107, 142, 35), 'nature'),
    ('terrain', (152, 251, 152), 'nature'),
    ('sky', (70, 130, 180), 'sky'),
    ('person', (220, 20, 60), 'human'),
    ('rider', (255, 0, 0), 'human'),
    ('car', (0, 0, 142), 'vehicle'),
    ('truck', (0, 0, 70), 'vehicle'),
    ('bus', (0, 60, 100), 'vehicle'),
    ('train', (0, 80, 100), 'vehicle'),
    ('motorcycle', (0, 0, 230), 'vehicle'),
    ('bicycle', (119, 11, 32), 'vehicle'),
)

# Values of Cityscapes' label pictures (labelIds) that the classes above have, in their order, and
# what every value means: a class, or 255 where it is not evaluated. KITTI's are the same.
_EVALUATED_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_IDS = dict.fromkeys(range(34), UNLABELLED) | {
    number: index for index, number in enumerate(_EVALUATED_IDS)
}

# Mean area in pixels of the objects of a class in Cityscapes' training images, by which its
# benchmark weights them; from cityscapesscripts.
CITYSCAPES_INSTANCE_AREA = {
    'person': 3462.4756337644,
    'rider': 3930.4788056518,
    'car': 12794.0202738185,
    'truck': 27855.1264367816,
    'bus': 35732.1511111111,
    'train': 67583.7075812274,
    'motorcycle': 6298.7200839748,
    'bicycle': 4672.3249222261,
}

# The 11 classes of the SegNet version of CamVid, in its order and colours.
CAMVID = _label_set(
    'camvid',
    ('sky', (128, 128, 128)),
    ('building', (128, 0, 0)),
    ('pole', (192, 192, 128)),
    ('road', (128, 64, 128)),
    ('pavement', (60, 40, 222)),
    ('tree', (128, 128, 0)),
    ('sign', (192, 128, 128)),
    ('fence', (64, 64, 128)),
    ('car', (64, 0, 128)),
    ('pedestrian', (64, 64, 0)),
    ('bicyclist', (0, 128, 192)),
)

# KITTI's semantic classes are those of Cityscapes.
LABEL_SETS = {label_set.name: label_set for label_set in (CITYSCAPES, CAMVID)}

# Which class of a coarse set each class of a fine set counts as. CamVid merges vehicles into car,
# a rider and what is ridden into bicyclist, grass into tree, a wall into building.
_CITYSCAPES_TO_CAMVID = {
    'road': 'road',
    'sidewalk': 'pavement',
    'building': 'building',
    'wall': 'building',
    'fence': 'fence',
    'pole': 'pole',
    'traffic light': 'sign',
    'traffic sign': 'sign',
    'vegetation': 'tree',
    'terrain': 'tree',
    'sky': 'sky',
    'person': 'pedestrian',
    'rider': 'bicyclist',
    'car': 'car',
    'truck': 'car',
    'bus': 'car',
    'train': 'car',
    'motorcycle': 'bicyclist',
    'bicycle': 'bicyclist',
}


def conversion(source: LabelSet, target: LabelSet) -> NDArray[np.uint8]:
    """
    Table that turns label values of one set into those of a coarser one.

    :returns: (256,) uint8, so that `table[labels]` converts; 255 where there is no counterpart.
    :raises InputError: no conversion from `source` to `target` is known.
    """
    table = np.full(256, UNLABELLED, np.uint8)
    if source.names == target.names:
        table[: len(source)] = np.arange(len(source))
        return table
    if (source.name, target.name) != (CITYSCAPES.name, CAMVID.name):
        raise InputError(f'labels of {source.name} cannot be converted to {target.name}')
    for fine, coarse in _CITYSCAPES_TO_CAMVID.items():
        table[source.index(fine)] = target.index(coarse)
    return table
