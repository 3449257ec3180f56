"""Image pairs with true optical flow on disk."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dense_perception.arrays import Flow, Image, Mask
from dense_perception.data.flow_files import read_content, read_flo, read_kitti_flow
from dense_perception.data.frames import read_label_picture, read_picture
from dense_perception.errors import InputError

CHAIRS_SPLITS = 'FlyingChairs_train_val.txt'  # 1 for training, 2 for validation, a line per pair


@dataclass(frozen=True)
class FlowPair:
    """Two images and the flow from the first to the second, on the first one's grid."""

    name: str
    first: Image
    second: Image
    flow: Flow
    valid: Mask  # where the flow is known
    occluded: Mask | None = None  # what the second image hides; None where that is not known


@dataclass(frozen=True)
class FlowFiles:
    """The files of one pair."""

    name: str
    first: Path
    second: Path
    flow: Path  # .flo, or .png as KITTI's
    visible: Path | None = None  # KITTI: flow only of what the second image does not hide
    occlusions: Path | None = None  # mask of what it hides
    invalid: Path | None = None  # mask of unknown flow

    def read(self) -> FlowPair:
        """
        Read the pair.

        :raises InputError: a file is missing or damaged, or sizes differ.
        """
        flow, valid = _read_flow(self.flow)
        first, second = read_picture(self.first), read_picture(self.second)
        sizes = {self.first: first.shape[:2], self.second: second.shape[:2]}
        occluded = None
        if self.visible:
            occluded = ~_read_flow(self.visible)[1]
            sizes[self.visible] = occluded.shape
        if self.occlusions:
            occluded = read_label_picture(self.occlusions) > 0
            sizes[self.occlusions] = occluded.shape
        if self.invalid:
            invalid = read_label_picture(self.invalid) > 0
            sizes[self.invalid] = invalid.shape
        for path, size in sizes.items():
            if size != valid.shape:
                raise InputError(f'{path} is {size}, {self.flow} is {valid.shape}; must match')
        if self.invalid:
            valid &= ~invalid
        return FlowPair(self.name, first, second, flow, valid, occluded)


@dataclass(frozen=True)
class FlowFolder(Sequence[FlowPair]):
    """Pairs on disk, in the order of their names."""

    files: tuple[FlowFiles, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> FlowPair:  # type: ignore[override]
        return self.files[index].read()


def flow_pairs(folder: Path) -> list[FlowPair]:
    """
    Read every pair in a folder that holds pairs of several data sets.

    Understands `middlebury/*/frame10.png`, `sintel/*/final`, `flyingchairs/*_img1.png`,
    `kitti2012/*_10_flow_noc.png` and `kitti2015/*_10_flow.png`, as those data sets name them.

    :raises InputError: no pair is found, a file of one is missing or damaged, or sizes differ.
    """
    files = [*_mixed_files(folder)]
    if not files:
        raise InputError(f'{folder}: no image pairs with flow in it')
    return [pair.read() for pair in files]


def flying_chairs(folder: Path, split: str) -> FlowFolder:
    """
    Open Flying Chairs: `data/00001_img1.ppm`, `_img2.ppm`, `_flow.flo`, and the list of splits.

    :param folder: where `data` and `FlyingChairs_train_val.txt` lie.
    :param split: `train` or `val`.
    :raises InputError: a file is missing, or the list has another number of pairs.
    """
    number = {'train': '1', 'val': '2'}.get(split)
    if number is None:
        raise InputError(f'split is {split!r}; Flying Chairs has train and val')
    flows = _found(folder / 'data', '*_flow.flo')
    listed = read_content(folder / CHAIRS_SPLITS).decode(errors='replace').split()
    if not set(listed) <= {'1', '2'} or len(listed) != len(flows):
        raise InputError(
            f'{folder / CHAIRS_SPLITS}: {len(listed)} entries for {len(flows)} pairs; '
            'it must have 1 (training) or 2 (validation) for each'
        )
    chosen = [path for path, entry in zip(flows, listed, strict=True) if entry == number]
    return _complete(folder, [_chairs(path, 'ppm') for path in chosen])


def sintel(folder: Path, split: str) -> FlowFolder:
    """
    Open MPI-Sintel: `training/` with `clean`, `final`, `flow`, `occlusions` and `invalid`.

    :param folder: where `training` lies; each of its folders has one per scene.
    :param split: the rendering pass, `clean` or `final`; all scenes of `training`.
    :raises InputError: a file is missing.
    """
    training = folder / 'training'
    return _complete(
        training,
        [_sintel(path, training, split) for path in _found(training / 'flow', '*/*.flo')],
    )


def kitti_2012(folder: Path, split: str) -> FlowFolder:
    """
    Open KITTI 2012 flow: `colored_0` (or `image_0`, grey), `flow_occ` and `flow_noc` in the split.

    :param folder: where `training` lies.
    :param split: `training`; the flow of `testing` is not published.
    :raises InputError: a file is missing.
    """
    images = 'colored_0' if (folder / split / 'colored_0').is_dir() else 'image_0'
    return _kitti_folder(folder / split, images)


def kitti_2015(folder: Path, split: str) -> FlowFolder:
    """
    Open KITTI 2015 flow: `image_2`, `flow_occ` and `flow_noc` in the split.

    :param folder: where `training` lies.
    :param split: `training`; the flow of `testing` is not published.
    :raises InputError: a file is missing.
    """
    return _kitti_folder(folder / split, 'image_2')


def middlebury(folder: Path, split: str) -> FlowFolder:
    """
    Open Middlebury: `other-data/SCENE/frame10.png`, `frame11.png` and `other-gt-flow/SCENE/`.

    :param folder: where the two lie.
    :param split: `other`; the flow of `eval` is not published.
    :raises InputError: a file is missing.
    """
    images = folder / f'{split}-data'
    flows = _found(folder / f'{split}-gt-flow', '*/flow10.flo')
    return _complete(folder, [_middlebury(path, images / path.parent.name) for path in flows])


def _found(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f'{folder}: no such folder')
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise InputError(f'{folder}: no {pattern} in it')
    return paths


def _complete(folder: Path, pairs: Sequence[FlowFiles]) -> FlowFolder:
    """Check that every file is there, so that a long evaluation does not end at the last pair."""
    missing = [
        path
        for pair in pairs
        for path in (pair.first, pair.second, pair.visible, pair.occlusions, pair.invalid)
        if path and not path.is_file()
    ]
    if missing:
        raise InputError(f'{folder}: {len(missing)} files are missing, the first is {missing[0]}')
    return FlowFolder(tuple(pairs))


def _mixed_files(folder: Path) -> Iterator[FlowFiles]:
    for scene in sorted(folder.glob('middlebury/*')):
        yield _middlebury(scene / 'flow10.flo', scene)
    for path in sorted(folder.glob('sintel/*/flow/*.flo')):
        scene = path.parents[1]
        first, second = _following(path, scene / 'final')
        masks = [scene / kind / f'{path.stem}.png' for kind in ('occlusions', 'invalid')]
        occlusions, invalid = (mask if mask.is_file() else None for mask in masks)
        yield FlowFiles(
            f'sintel/{scene.name}', first, second, path, occlusions=occlusions, invalid=invalid
        )
    for path in sorted(folder.glob('flyingchairs/*_flow.flo')):
        yield _chairs(path, 'png')
    for kind, ending in (('kitti2012', '_flow_noc'), ('kitti2015', '_flow')):
        for path in sorted(folder.glob(f'{kind}/*{ending}.png')):
            first = path.with_name(path.name.replace(ending, ''))
            second = first.with_name(first.name.replace('_10', '_11'))
            yield FlowFiles(f'{kind}/{first.stem}', first, second, path)


def _middlebury(flow: Path, images: Path) -> FlowFiles:
    first, second = images / 'frame10.png', images / 'frame11.png'
    return FlowFiles(f'middlebury/{images.name}', first, second, flow)


def _chairs(flow: Path, suffix: str) -> FlowFiles:
    number = flow.name.removesuffix('_flow.flo')
    first, second = (flow.with_name(f'{number}_img{index}.{suffix}') for index in (1, 2))
    return FlowFiles(f'flyingchairs/{number}', first, second, flow)


def _sintel(flow: Path, training: Path, rendering: str) -> FlowFiles:
    scene = flow.parent.name
    first, second = _following(flow, training / rendering / scene)
    occlusions, invalid = (
        training / kind / scene / f'{flow.stem}.png' for kind in ('occlusions', 'invalid')
    )
    name = f'sintel/{rendering}/{scene}/{flow.stem}'
    return FlowFiles(name, first, second, flow, occlusions=occlusions, invalid=invalid)


def _following(flow: Path, images: Path) -> tuple[Path, Path]:
    """Return the image that a flow file is named for, and the one after."""
    number = flow.stem.rpartition('_')[2]
    if not number.isdecimal():
        raise InputError(f'{flow}: its name must end in a frame number, as frame_0001.flo does')
    first, second = (images / f'frame_{int(number) + step:04d}.png' for step in (0, 1))
    return first, second


def _kitti_folder(folder: Path, images: str) -> FlowFolder:
    pairs = []
    for flow in _found(folder / 'flow_occ', '*_10.png'):
        first = folder / images / flow.name
        second = first.with_name(flow.name.replace('_10.png', '_11.png'))
        pairs.append(
            FlowFiles(flow.stem, first, second, flow, visible=folder / 'flow_noc' / flow.name)
        )
    return _complete(folder, pairs)


def _read_flow(path: Path) -> tuple[Flow, Mask]:
    return read_flo(path) if path.suffix == '.flo' else read_kitti_flow(path)
