"""Image pairs with true optical flow on disk."""

from dataclasses import dataclass
from pathlib import Path

import cv2
from dense_perception.arrays import Flow, Image, Mask
from dense_perception.data.flow_files import read_flo, read_kitti_flow
from dense_perception.data.frames import read_picture
from dense_perception.errors import InputError


@dataclass(frozen=True)
class FlowPair:
    """Two images and the flow from the first to the second, on the first one's grid."""

    name: str
    first: Image
    second: Image
    flow: Flow
    valid: Mask  # where the flow is known


def flow_pairs(folder: Path) -> list[FlowPair]:
    """
    Read every pair in a folder that holds pairs of several data sets.

    Understands `middlebury/*/frame10.png`, `sintel/*/final`, `flyingchairs/*_img1.png`,
    `kitti2012/*_10_flow_noc.png` and `kitti2015/*_10_flow.png`, as those data sets name them.

    :raises InputError: no pair is found, a file of one is missing or damaged, or sizes differ.
    """
    pairs = [
        *(_middlebury(path) for path in sorted(folder.glob('middlebury/*'))),
        *(_sintel(path) for path in sorted(folder.glob('sintel/*/flow/*.flo'))),
        *(_chairs(path) for path in sorted(folder.glob('flyingchairs/*_flow.flo'))),
        *(_kitti(path, '_flow_noc') for path in sorted(folder.glob('kitti2012/*_flow_noc.png'))),
        *(_kitti(path, '_flow') for path in sorted(folder.glob('kitti2015/*_flow.png'))),
    ]
    if not pairs:
        raise InputError(f'{folder}: no image pairs with flow in it')
    for pair in pairs:
        first, second, flow = (array.shape[:2] for array in (pair.first, pair.second, pair.flow))
        if not first == second == flow:
            raise InputError(
                f'{folder / pair.name}: images are {first}, {second}, flow is {flow}; '
                'sizes must match'
            )
    return pairs


def _middlebury(folder: Path) -> FlowPair:
    flow, valid = read_flo(folder / 'flow10.flo')
    first, second = read_picture(folder / 'frame10.png'), read_picture(folder / 'frame11.png')
    return FlowPair(f'middlebury/{folder.name}', first, second, flow, valid)


def _sintel(path: Path) -> FlowPair:
    flow, valid = read_flo(path)
    scene, number = path.parents[1], int(path.stem.rpartition('_')[2])
    invalid = cv2.imread(str(scene / 'invalid' / f'{path.stem}.png'), cv2.IMREAD_GRAYSCALE)
    if invalid is not None:
        valid &= invalid == 0
    images = [scene / 'final' / f'frame_{index:04d}.png' for index in (number, number + 1)]
    first, second = map(read_picture, images)
    return FlowPair(f'sintel/{scene.name}', first, second, flow, valid)


def _chairs(path: Path) -> FlowPair:
    flow, valid = read_flo(path)
    stem = path.name.removesuffix('_flow.flo')
    images = [path.with_name(f'{stem}_img{index}.png') for index in (1, 2)]
    first, second = map(read_picture, images)
    return FlowPair(f'flyingchairs/{stem}', first, second, flow, valid)


def _kitti(path: Path, suffix: str) -> FlowPair:
    flow, valid = read_kitti_flow(path)
    first = path.with_name(path.name.replace(suffix, ''))
    second = first.with_name(first.name.replace('_10', '_11'))
    name = f'{path.parent.name}/{first.stem}'
    return FlowPair(name, read_picture(first), read_picture(second), flow, valid)
