"""Truth of a recording that lies in files, found by the stamp or the name of an image."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
import re

from dense_perception.arrays import Flow, Labels, Mask
from dense_perception.data.flow_files import read_flo, read_kitti_flow
from dense_perception.data.label_files import cityscapes_instances, LabelCoding, read_mapping
from dense_perception.data.segmentation import MAPPING_FILE
from dense_perception.errors import InputError
from dense_perception.labels import CITYSCAPES, CITYSCAPES_IDS, Instances, LabelSet, UNLABELLED

LAYOUT = (
    'labels/STAMP.png or flow/STAMP.flo (or .png as KITTI writes it), STAMP in nanoseconds or '
    "the frame_id of the image, or Cityscapes' gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png with "
    'NAME as the frame_id or timestamp_sequence/SPLIT/CITY/NAME_timestamp.txt for the stamp'
)


def index_coding(label_set: LabelSet) -> LabelCoding:
    """Return the coding of pictures that hold class indices, and 255 where there is no label."""
    return LabelCoding.of_values(
        {index: index for index in range(len(label_set))} | {UNLABELLED: UNLABELLED}
    )


@dataclass(frozen=True)
class TruthFiles:
    """Label and flow files of a recording by the stamp (in digits) or name of their image."""

    folder: Path
    label_set: LabelSet
    coding: LabelCoding
    labels: dict[str, Path]
    flow: dict[str, Path] = field(default_factory=dict)
    has_instances: bool = False

    def find_labels(self, stamp_ns: int, name: str) -> Path | None:
        """Return the label file of an image; None where there is none."""
        return self.labels.get(str(stamp_ns)) or self.labels.get(name)

    def find_flow(self, stamp_ns: int, name: str) -> Path | None:
        """Return the file of the flow that ends at an image; None where there is none."""
        return self.flow.get(str(stamp_ns)) or self.flow.get(name)

    def read_labels(self, path: Path) -> Labels:
        """Read labels; see `LabelCoding.read`."""
        return self.coding.read(path)

    def read_instances(self, path: Path) -> Instances | None:
        """
        Read the objects beside Cityscapes' labels; None where there are none.

        :raises InputError: the file is damaged.
        """
        if not self.has_instances:
            return None
        objects = path.with_name(f'{path.name.rpartition("_")[0]}_instanceIds.png')
        return cityscapes_instances(objects) if objects.is_file() else None


def read_flow_file(path: Path) -> tuple[Flow, Mask]:
    """
    Read flow and where it is known.

    :raises InputError: missing, damaged, or neither `.flo` nor KITTI's PNG.
    """
    return read_flo(path) if path.suffix == '.flo' else read_kitti_flow(path)


def truth_files(folder: Path, label_set: LabelSet) -> TruthFiles:
    """
    Look through a folder of truth: LAYOUT says how it may lie.

    :param label_set: of the label pictures, unless the folder has a `labels.yaml` or is in the
        layout of Cityscapes, which say so themselves.
    :raises InputError: no such folder, or nothing of the kind in it.
    """
    if not folder.is_dir():
        raise InputError(f'{folder}: no such folder of truth; it holds {LAYOUT}')
    if (folder / 'gtFine').is_dir():
        return _cityscapes_files(folder)
    coding = index_coding(label_set)
    if (folder / MAPPING_FILE).is_file():
        coding, label_set = read_mapping(folder / MAPPING_FILE)
    labels = {path.stem: path for path in sorted((folder / 'labels').glob('*.png'))}
    flow = {
        path.stem: path
        for path in sorted((folder / 'flow').glob('*'))
        if path.suffix in ('.flo', '.png')
    }
    if not labels and not flow:
        raise InputError(f'{folder}: no truth in it; it holds {LAYOUT}')
    return TruthFiles(folder, label_set, coding, labels, flow)


def _cityscapes_files(folder: Path) -> TruthFiles:
    labels: dict[str, Path] = {}
    for path in sorted((folder / 'gtFine').glob('*/*/*_gtFine_labelIds.png')):
        for key in _cityscapes_keys(folder, path):
            labels[key] = path
    if not labels:
        raise InputError(f'{folder}: no gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png in it')
    coding = LabelCoding.of_values(CITYSCAPES_IDS)
    return TruthFiles(folder, CITYSCAPES, coding, labels, has_instances=True)


def _cityscapes_keys(folder: Path, labels: Path) -> Iterator[str]:
    name = labels.name.removesuffix('_gtFine_labelIds.png')
    yield name
    yield f'{name}_leftImg8bit'
    split, city = labels.parts[-3:-1]
    stamp = folder / 'timestamp_sequence' / split / city / f'{name}_timestamp.txt'
    if stamp.is_file():
        text = stamp.read_text(encoding='utf-8', errors='replace').strip()
        if not re.fullmatch(r'\d{1,19}', text):
            raise InputError(f'{stamp}: {text[:40]!r} is no stamp in nanoseconds')
        yield str(int(text))
