"""Images with labels on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dense_perception.arrays import Image, Labels
from dense_perception.data.frames import pictures, read_label_picture, read_picture
from dense_perception.errors import InputError
from dense_perception.labels import CAMVID, LabelSet, UNLABELLED


@dataclass(frozen=True)
class LabelledImage:
    """One image and the class of each of its pixels."""

    name: str
    image: Image
    labels: Labels


@dataclass(frozen=True)
class LabelledFolder(Sequence[LabelledImage]):
    """Images and label images of the same name in two folders, in the order of their names."""

    pairs: tuple[tuple[Path, Path], ...]  # image, labels
    label_set: LabelSet

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> LabelledImage:  # type: ignore[override]
        image_path, labels_path = self.pairs[index]
        image = read_picture(image_path)
        labels = read_labels(labels_path, self.label_set)
        if image.shape[:2] != labels.shape:
            raise InputError(f'{labels_path} is {labels.shape}, its image is {image.shape[:2]}')
        return LabelledImage(image_path.stem, image, labels)


def camvid(folder: Path, split: str) -> LabelledFolder:
    """
    Open the SegNet version of CamVid: `train/` beside `trainannot/`, and so on.

    :param folder: where the splits' folders lie.
    :param split: `train`, `val` or `test`.
    :raises InputError: a folder is missing or an image has no labels.
    """
    return labelled_folder(folder / split, folder / f'{split}annot', CAMVID)


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
    return LabelledFolder(tuple(kept), training.label_set)


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
