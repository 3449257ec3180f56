"""
Fit SuperParsing to labelled images: nothing is trained, they are described and kept.

`python -m dense_perception.cli.fit_super_parsing --dataset camvid --data CAMVID --out FILE`
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
import sys

import cv2
from dense_perception.arrays import Image, Labels
from dense_perception.data.datasets import find_labelled, LABELLED
from dense_perception.data.segmentation import camvid, LabelledFolder, without_neighbours
from dense_perception.errors import DensePerceptionError, SettingError
from dense_perception.networks.super_parsing import (
    RETRIEVED,
    SuperParsing,
    SuperParsingSettings,
)
from dense_perception.predictors.tensors import images_to_tensor, resize
from dense_perception.training.labelled import hold_out, LabelledRecipe, own_folder
from dense_perception.weights.checkpoint import Card, own_label_set, Preprocessing, save_weights
import numpy as np
from tqdm import tqdm

# Of the settings, what is not the network's own default: it was made for thousands of images, and
# with hundreds lets rare classes win nearly everywhere.
_DEFAULTS = {'added': 0.001}
_HELD_OUT = LabelledRecipe().held_out  # where there is no split: the images that training leaves


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        _fit(options)
    except DensePerceptionError as error:
        print(f'fit_super_parsing: {error}', file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='fit_super_parsing',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--data', type=Path, required=True, help='folder of images and labels')
    parser.add_argument(
        '--dataset', choices=tuple(LABELLED), default='folder', help='layout of --data'
    )
    parser.add_argument('--mapping', type=Path, help="of --data's labels; default labels.yaml")
    parser.add_argument('--out', type=Path, required=True, help='.safetensors file to write')
    parser.add_argument(
        '--images', type=int, default=100, help='to keep, evenly spaced among all; 0: all of them'
    )
    parser.add_argument(
        '--columns', type=int, default=480, help='images are resized to; 0: not at all'
    )
    parser.add_argument('--seed', type=int, default=0, help='draws pixels for visual words')
    parser.add_argument(
        '--width',
        choices=tuple(RETRIEVED),
        default='compact',
        help=f'scenes that one is compared with: {RETRIEVED}',
    )
    group = parser.add_argument_group('settings')
    for entry in fields(SuperParsingSettings):
        group.add_argument(
            f'--{entry.name.replace("_", "-")}',
            type=type(entry.default),
            default=_DEFAULTS.get(entry.name, entry.default),
            help=f'{entry.metadata["description"]} (default: %(default)s)',
        )
    return parser


def _fit(options: argparse.Namespace) -> None:
    settings = SuperParsingSettings(
        **{entry.name: getattr(options, entry.name) for entry in fields(SuperParsingSettings)}
    )
    samples = _spread(_samples(options), options.images)
    if options.columns < 0:
        raise SettingError(f'columns is {options.columns}; it must not be negative')
    network = SuperParsing(len(samples.label_set), options.width, settings=asdict(settings))
    with tqdm(range(2 * len(samples)), unit='image', desc='fit') as bar:
        network.fit(
            _Pictures(samples, options.columns, bar),
            _Truth(samples, options.columns),
            np.random.default_rng(options.seed),
        )
    card = Card(
        'super_parsing',
        network.arguments,
        Preprocessing(),
        notes={'data': options.dataset, 'images': len(samples), 'columns': options.columns},
        **own_label_set(samples.label_set),
    )
    save_weights(options.out, network, card)
    size = options.out.stat().st_size / 1e6
    print(
        f'{options.out}: {len(samples)} images, {len(network.truth):,} superpixels of '
        f'{len(samples.label_set)} classes, {size:.1f} MB'
    )


def _samples(options: argparse.Namespace) -> LabelledFolder:
    """Open the images to keep: none that is scored on, nor of CamVid any that is near to one."""
    if options.dataset == 'folder':
        return own_folder(options.data, options.mapping, _HELD_OUT)[0]
    if options.mapping:
        raise SettingError(f'--mapping is for --dataset folder, not {options.dataset}')
    splits = LABELLED[options.dataset].splits
    training = find_labelled(options.dataset, options.data, splits[0])
    if options.dataset == 'camvid':
        return without_neighbours(training, camvid(options.data, 'val'))
    return training if 'val' in splits else hold_out(training, _HELD_OUT)[0]


def _spread(samples: LabelledFolder, count: int) -> LabelledFolder:
    """Return some samples, evenly spaced; all where the count is 0 or larger than there are."""
    if count < 0:
        raise SettingError(f'images is {count}; it must not be negative')
    if not 0 < count < len(samples):
        return samples
    places = np.linspace(0, len(samples) - 1, count).round().astype(int)
    return replace(samples, pairs=tuple(samples.pairs[place] for place in places))


@dataclass(frozen=True)
class _Pictures(Sequence[Image]):
    """The images, as the predictor resizes them; each one that is read moves the bar on."""

    samples: LabelledFolder
    columns: int
    bar: 'tqdm[int]'

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Image:  # type: ignore[override]
        self.bar.update()
        image = self.samples[index].image
        size = _size(image, self.columns)
        resized = resize(images_to_tensor([image]), *size)[0].permute(1, 2, 0)
        return resized.round().clamp(0, 255).byte().numpy()


@dataclass(frozen=True)
class _Truth(Sequence[Labels]):
    """The labels of the images."""

    samples: LabelledFolder
    columns: int

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Labels:  # type: ignore[override]
        labels = self.samples[index].labels
        rows, columns = _size(labels, self.columns)
        resized = cv2.resize(labels, (columns, rows), interpolation=cv2.INTER_NEAREST)
        return np.asarray(resized, np.uint8)


def _size(picture: Image | Labels, columns: int) -> tuple[int, int]:
    """Return rows and columns as `Segmenter` finds them for its width."""
    height, width = picture.shape[:2]
    return (max(1, round(height * columns / width)), columns) if columns else (height, width)


if __name__ == '__main__':
    sys.exit(main())
