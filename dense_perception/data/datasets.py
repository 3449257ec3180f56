"""Data sets by name, each in the layout in which it is published."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from dense_perception.data.flow import (
    FlowFolder,
    flying_chairs,
    kitti_2012,
    kitti_2015,
    middlebury,
    sintel,
)
from dense_perception.data.segmentation import (
    camvid,
    cityscapes,
    kitti_semantics,
    LabelledFolder,
    mapped_folder,
)
from dense_perception.errors import InputError

Samples = TypeVar('Samples')


@dataclass(frozen=True)
class Layout(Generic[Samples]):
    """How a data set lies on disk."""

    open: Callable[[Path, str], Samples]
    splits: tuple[str, ...]  # empty where any name will do
    files: str  # what an error shows


LABELLED: dict[str, Layout[LabelledFolder]] = {
    'cityscapes': Layout(
        cityscapes,
        ('train', 'val'),
        'leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png, '
        'gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png (or _labelTrainIds.png)',
    ),
    'camvid': Layout(
        camvid, ('train', 'val', 'test'), 'SPLIT/NAME.png, SPLITannot/NAME.png (SegNet version)'
    ),
    'kitti_semantics': Layout(
        kitti_semantics, ('training',), 'training/image_2/NAME.png, training/semantic/NAME.png'
    ),
    'folder': Layout(
        mapped_folder, (), 'images/SPLIT/NAME.png, labels/SPLIT/NAME.png, labels.yaml'
    ),
}

FLOW: dict[str, Layout[FlowFolder]] = {
    'flying_chairs': Layout(
        flying_chairs,
        ('train', 'val'),
        'data/00001_img1.ppm, data/00001_img2.ppm, data/00001_flow.flo, '
        'FlyingChairs_train_val.txt',
    ),
    'sintel': Layout(
        sintel,
        ('clean', 'final'),
        'training/clean/SCENE/frame_0001.png (and final), training/flow/SCENE/frame_0001.flo, '
        'training/occlusions/SCENE/frame_0001.png, training/invalid/SCENE/frame_0001.png',
    ),
    'kitti_2012': Layout(
        kitti_2012,
        ('training',),
        'training/colored_0/000000_10.png and _11.png (or image_0), '
        'training/flow_occ/000000_10.png, training/flow_noc/000000_10.png',
    ),
    'kitti_2015': Layout(
        kitti_2015,
        ('training',),
        'training/image_2/000000_10.png and _11.png, '
        'training/flow_occ/000000_10.png, training/flow_noc/000000_10.png',
    ),
    'middlebury': Layout(
        middlebury,
        ('other',),
        'other-data/SCENE/frame10.png and frame11.png, other-gt-flow/SCENE/flow10.flo',
    ),
}


def find_labelled(name: str, root: Path, split: str) -> LabelledFolder:
    """
    Open a data set of images with labels.

    :param name: a key of `LABELLED`.
    :param root: its folder, as unpacked.
    :param split: one of its splits.
    :raises InputError: unknown name or split, or a folder or file is missing.
    """
    return _find(LABELLED, name, root, split)


def find_flow(name: str, root: Path, split: str) -> FlowFolder:
    """
    Open a data set of image pairs with flow.

    :param name: a key of `FLOW`.
    :param root: its folder, as unpacked.
    :param split: one of its splits; of Sintel, the rendering pass.
    :raises InputError: unknown name or split, or a folder or file is missing.
    """
    return _find(FLOW, name, root, split)


def _find(known: Mapping[str, Layout[Samples]], name: str, root: Path, split: str) -> Samples:
    if name not in known:
        raise InputError(f'there is no data set {name!r} here; known are {", ".join(known)}')
    layout = known[name]
    if layout.splits and split not in layout.splits:
        raise InputError(f'{name} has no split {split!r}; it has {", ".join(layout.splits)}')
    if not root.is_dir():
        raise InputError(f'{root}: no such folder; {name} holds {layout.files}')
    try:
        return layout.open(root, split)
    except InputError as error:
        raise InputError(f'{error}; {name} holds {layout.files}') from error
