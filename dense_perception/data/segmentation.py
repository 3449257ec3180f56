"""Images with labels on disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dense_perception.arrays import Image, Labels
from dense_perception.data.frames import pictures, read_label_picture, read_picture
from dense_perception.data.label_files import (
    cityscapes_instances,
    kitti_instances,
    LabelCoding,
    read_mapping,
)
from dense_perception.errors import InputError
from dense_perception.labels import (
    CAMVID,
    CITYSCAPES,
    CITYSCAPES_IDS,
    Instances,
    LabelSet,
    UNLABELLED,
)

MAPPING_FILE = 'labels.yaml'

_CITYSCAPES_VALUES = LabelCoding.of_values(CITYSCAPES_IDS)
_TRAIN_ID_VALUES = LabelCoding.of_values(
    {index: index for index in range(len(CITYSCAPES))} | {UNLABELLED: UNLABELLED}
)
_CAMVID_VALUES = LabelCoding.of_values(  # 11 is the void of the SegNet version
    {index: index for index in range(len(CAMVID))} | {11: UNLABELLED, UNLABELLED: UNLABELLED}
)


@dataclass(frozen=True)
class LabelledImage:
    """One image and the class of each of its pixels."""

    name: str
    image: Image
    labels: Labels


@dataclass(frozen=True)
class LabelledFolder(Sequence[LabelledImage]):
    """Images and their label images on disk, in the order of their names."""

    pairs: tuple[tuple[Path, Path], ...]  # image, labels
    label_set: LabelSet
    coding: LabelCoding | None = None  # None: class indices, and any other value is unlabelled
    read_instances: Callable[[Path], Instances] | None = None  # by the path of the labels

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> LabelledImage:  # type: ignore[override]
        image_path, labels_path = self.pairs[index]
        image = read_picture(image_path)
        if self.coding is None:
            labels = read_labels(labels_path, self.label_set)
        else:
            labels = self.coding.read(labels_path)
        if image.shape[:2] != labels.shape:
            raise InputError(f'{labels_path} is {labels.shape}, its image is {image.shape[:2]}')
        return LabelledImage(image_path.stem, image, labels)

    def instances(self, index: int) -> Instances:
        """
        Read the objects of an image, by which the instance-weighted IoU is found.

        :returns: (H, W) int32, as `labels.Instances` says.
        :raises InputError: the data set has none, or the file cannot be read.
        """
        if self.read_instances is None:
            raise InputError(f'{self.pairs[index][1]}: no objects are told apart in this data set')
        return self.read_instances(self.pairs[index][1])


def camvid(folder: Path, split: str) -> LabelledFolder:
    """
    Open the SegNet version of CamVid: `train/` beside `trainannot/`, and so on.

    :param folder: where the splits' folders lie.
    :param split: `train`, `val` or `test`.
    :raises InputError: a folder is missing or an image has no labels.
    """
    return replace(
        labelled_folder(folder / split, folder / f'{split}annot', CAMVID), coding=_CAMVID_VALUES
    )


def cityscapes(folder: Path, split: str) -> LabelledFolder:
    """
    Open Cityscapes: `leftImg8bit/` beside `gtFine/`, each with a folder per city in each split.

    Labels are read from `labelIds` pictures, or from `labelTrainIds` where those are missing.

    :param folder: where `leftImg8bit` and `gtFine` lie.
    :param split: `train` or `val`; the labels of `test` are not published.
    :raises InputError: a folder is missing or an image has no labels.
    """
    images = folder / 'leftImg8bit' / split
    if not images.is_dir():
        raise InputError(f'{images}: no such folder')
    paths = sorted(images.glob('*/*_leftImg8bit.*'))
    if not paths:
        raise InputError(f'{images}: no CITY/*_leftImg8bit.png in it')
    first_missing = None
    for kind, coding in (('labelIds', _CITYSCAPES_VALUES), ('labelTrainIds', _TRAIN_ID_VALUES)):
        pairs = tuple((path, _gt_fine(folder, path, kind)) for path in paths)
        missing = [truth for _, truth in pairs if not truth.is_file()]
        if not missing:
            return LabelledFolder(pairs, CITYSCAPES, coding, _cityscapes_instances)
        first_missing = first_missing or missing[0]
    raise InputError(f'{first_missing}: no such file, nor labelTrainIds for every image')


def _gt_fine(folder: Path, image: Path, kind: str) -> Path:
    frame = image.stem.removesuffix('_leftImg8bit')
    split, city = image.parts[-3:-1]
    return folder / 'gtFine' / split / city / f'{frame}_gtFine_{kind}.png'


def _cityscapes_instances(labels: Path) -> Instances:
    frame = labels.name.rpartition('_')[0]
    return cityscapes_instances(labels.with_name(f'{frame}_instanceIds.png'))


def kitti_semantics(folder: Path, split: str) -> LabelledFolder:
    """
    Open KITTI's semantics: `image_2/` and `semantic/` in the split, with Cityscapes' labelIds.

    :param folder: where `training` lies.
    :param split: `training`; the labels of `testing` are not published.
    :raises InputError: a folder is missing or an image has no labels.
    """
    pairs = labelled_folder(folder / split / 'image_2', folder / split / 'semantic', CITYSCAPES)
    return replace(pairs, coding=_CITYSCAPES_VALUES, read_instances=_kitti_instances)


def _kitti_instances(labels: Path) -> Instances:
    return kitti_instances(labels.parents[1] / 'instance' / labels.name)


def mapped_folder(folder: Path, split: str) -> LabelledFolder:
    """
    Open a folder of one's own: `images/SPLIT`, `labels/SPLIT` with `NAME.png`, and `labels.yaml`.

    :param folder: where the three lie; `labels.yaml` says what the label pictures mean.
    :raises InputError: one is missing or wrong, or an image has no labels.
    """
    coding, label_set = read_mapping(folder / MAPPING_FILE)
    pairs = labelled_folder(folder / 'images' / split, folder / 'labels' / split, label_set)
    return replace(pairs, coding=coding)


def without_neighbours(
    training: LabelledFolder, validation: LabelledFolder, frames: int = 150
) -> LabelledFolder:
    """
    Leave out the training frames that are close in time to a validation frame.

    :param training: images named SEQUENCE_FRAME, as CamVid's are.
    :param validation: the same.
    :param frames: smallest distance in frame numbers within a sequence; 150 is five seconds.
    """
    seen = [_sequence_and_frame(image) for image, _ in validation.pairs]
    kept = []
    for pair in training.pairs:
        sequence, frame = _sequence_and_frame(pair[0])
        if all(sequence != name or abs(frame - other) >= frames for name, other in seen):
            kept.append(pair)
    return replace(training, pairs=tuple(kept))


def split_sequence(
    samples: LabelledFolder, sequence: str
) -> tuple[LabelledFolder, LabelledFolder]:
    """
    Return the images of all other sequences, and those of one.

    :param samples: images named SEQUENCE_FRAME, as CamVid's are.
    :raises InputError: no image is of that sequence.
    """
    names = [_sequence_and_frame(image)[0] for image, _ in samples.pairs]
    if sequence not in names:
        known = ', '.join(sorted(set(names)))
        raise InputError(f'no image is of sequence {sequence}; there are {known}')
    others, own = (
        replace(
            samples,
            pairs=tuple(
                pair
                for pair, name in zip(samples.pairs, names, strict=True)
                if (name == sequence) == wanted
            ),
        )
        for wanted in (False, True)
    )
    return others, own


def _sequence_and_frame(path: Path) -> tuple[str, int]:
    sequence, _, frame = path.stem.rpartition('_')
    digits = ''.join(character for character in frame if character.isdigit())
    if not digits:
        raise InputError(f'{path}: its name must end in a frame number, as 0016E5_07959 does')
    return sequence, int(digits)


def labelled_folder(images: Path, labels: Path, label_set: LabelSet) -> LabelledFolder:
    """
    Pair the images of one folder with the label images (`NAME.png`) of another.

    :raises InputError: a folder is missing, has no images, or an image has no labels.
    """
    paths = pictures(images)
    pairs = tuple((path, labels / f'{path.stem}.png') for path in paths)
    missing = [str(truth) for _, truth in pairs if not truth.is_file()]
    if missing:
        raise InputError(f'{len(missing)} label images are missing, the first is {missing[0]}')
    return LabelledFolder(pairs, label_set)


def read_labels(path: Path, label_set: LabelSet) -> Labels:
    """
    Read a label image; every value that is no class of the set becomes 255.

    :raises InputError: missing, or not one 8-bit channel.
    """
    labels = read_label_picture(path)
    labels[labels >= len(label_set)] = UNLABELLED
    return labels
