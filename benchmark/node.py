"""
Measure the launched node end to end: images go in, and labels and flow come out, over DDS.

This process is the camera and the consumer; `ros2 launch dense_perception drive.launch.py` starts
the installed node. Each image size is measured with the networks' input as `config/drive.yaml` has
it and with that of the whole image, by one camera and by a rig of three. The rows of a camera:

- bare: labels and flow of an image by the same networks in this process, without ROS, while the
  node has nothing to do. In turns with
- unloaded: one image, and nothing before its labels and flow have arrived. What it takes more than
  bare stands in its columns, as median of the differences; "in node" is what the node says that
  its networks took, "publish" what this process took to publish the image.
- saturated: the next image once labels and flow of the last have arrived.
- 60 Hz: a camera that does not wait; the newest image wins.
- overload: a camera three times as fast as the node. The limit stands beside it: two bare
  inferences (of all cameras) and one period of the camera, for the median of bare inference and
  for its p99.

Ages run from the stamp, taken before the image is published, to the arrival of both outputs.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
import math
import os
from pathlib import Path
import re
import sys
from tempfile import TemporaryDirectory
import time
from typing import Any

# As the node's process has it; read when torch is imported.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import cv2
from dense_perception.arrays import Image
from dense_perception.data.road_world import RoadWorld, RoadWorldSettings
from dense_perception.errors import DensePerceptionError, SettingError
from dense_perception.evaluation.result_files import machine, table_path, write_table
from dense_perception.labels import CITYSCAPES
from dense_perception.memory import keep_memory
from dense_perception.predictors.device import choose_placement
from dense_perception.ros.pipeline import load_pipeline
from dense_perception.settings import PerceptionSettings
from dense_perception.weights.checkpoint import Card, Preprocessing, save_weights
from node_parts import Launched, launched, WARM_UPS
from node_rows import COLUMNS, line, OUTPUTS, Row, Take
import numpy as np
import yaml

CONFIG = Path(__file__).parent.parent / 'config'
PROFILE = CONFIG / 'fastdds_large_images.xml'
SIZES = ((480, 360), (1024, 512), (2048, 1024))  # columns, rows
WHOLE = {'segmentation_width': 0, 'flow_width': 0}
FIXED = {'max_flow_gap_s': 60.0}  # so that every image has flow, however slow the networks are
RIG = ('front', 'left', 'right')
CAMERA_HZ = 60.0
OVERLOAD = 3
FRAMES = 8
LEAST = 5  # calls of the bare networks


class Bare:
    """The node's networks in this process."""

    def __init__(self, parameters: Mapping[str, Any], images: Sequence[Image]) -> None:
        """
        Load and warm up the networks.

        :param parameters: of the node.
        :param images: (H, W, 3) uint8 RGB each, two at least; a loop.
        """
        settings = PerceptionSettings.from_mapping(parameters)
        pipeline = load_pipeline(settings, lambda note: print(f'bare: {note}'))
        if pipeline.segmenter is None or pipeline.flow_estimator is None:
            raise SettingError('labels and flow are measured; neither may be switched off')
        self.segmenter, self.estimator = pipeline.segmenter, pipeline.flow_estimator
        self.times_ms: list[float] = []
        self._images = images
        for predictor in (self.segmenter, self.estimator):
            predictor.prepare(images)  # the node's engine, if it has one
        for number in range(WARM_UPS):
            self(number)
        self.times_ms.clear()

    def __call__(self, number: int) -> None:
        """Label an image, estimate flow from the one before, and keep how long both took."""
        first, second = (self._images[at % len(self._images)] for at in (number - 1, number))
        began = time.perf_counter()
        self.segmenter.segment(second)
        self.estimator.estimate(first, second)
        self.times_ms.append((time.perf_counter() - began) * 1e3)

    def percentile(self, rank: float) -> float:
        """Return a percentile of what both networks took, ms; nan before the first call."""
        return float(np.percentile(self.times_ms, rank)) if self.times_ms else math.nan

    def inputs(self) -> tuple[str, str]:
        """Return the sizes of image that labels and flow are made from."""
        seen = self.segmenter.inputs(self._images[0]), self.estimator.inputs(*self._images[:2])
        labels, flow = (f'{values[0].shape[-1]}x{values[0].shape[-2]}' for values in seen)
        return labels, flow


@dataclass
class Series:
    """Images of one size through networks of one input size."""

    size: str
    images: Sequence[Image]
    parameters: Mapping[str, Any]
    bare: Bare
    seconds: float

    def rows(self, cameras: int) -> Iterator[Row]:
        """Launch the node for a camera, or a rig of several, and give the rows."""
        names = RIG[:cameras] if cameras > 1 else ('',)
        with (
            TemporaryDirectory() as folder,
            launched(self.parameters, names, self.images, Path(folder)) as node,
        ):
            yield from self._of_rig(node) if cameras > 1 else self._of_camera(node)

    def _of_camera(self, node: Launched) -> Iterator[Row]:
        yield from self._unloaded(node)
        saturated = node.one_by_one(self.seconds)
        yield self._row('saturated', saturated)
        fast = node.at_rate(self.seconds, CAMERA_HZ)
        yield self._row(f'camera at {CAMERA_HZ:.0f} Hz', fast)
        yield from self._overloaded(node, max(saturated.fps, fast.fps))

    def _of_rig(self, node: Launched) -> Iterator[Row]:
        while len(self.bare.times_ms) < LEAST:
            self.bare(len(self.bare.times_ms))
        saturated = node.one_by_one(self.seconds)
        for name in node.cameras:
            yield self._row(f'rig, {name}: saturated', saturated.of(name))
        yield from self._overloaded(node, saturated.fps / len(node.cameras))

    def _unloaded(self, node: Launched) -> Iterator[Row]:
        """Serve an image and run the bare networks on the same, in turns."""
        self.bare.times_ms.clear()
        take, bare_ms = node.one_by_one(self.seconds, self.bare), self.bare.times_ms
        over = [
            shot.age_ms(*OUTPUTS) - bare
            for shot, bare in zip(take.shots, bare_ms, strict=True)
            if shot.has(*OUTPUTS)
        ]
        row = self._row('unloaded', take)
        row.camera_hz = row.fps = row.cpu_percent = math.nan  # it waits for this process
        row.over_bare_ms = float(np.median(over)) if over else math.nan
        row.over_bare_percent = 100 * row.over_bare_ms / self.bare.percentile(50)
        figures = node.next_figures()
        row.in_node_ms = sum(
            float(figures.get(f'{name} time p50 (ms)', 'nan')) for name in ('segmentation', 'flow')
        )
        yield Row(
            'bare',
            self.size,
            *self.bare.inputs(),
            received=len(bare_ms),
            fps=1e3 / self.bare.percentile(50),
            p50_ms=self.bare.percentile(50),
            p99_ms=self.bare.percentile(99),
        )
        yield row

    def _overloaded(self, node: Launched, fps: float) -> Iterator[Row]:
        """Have every camera publish faster than the node can."""
        rate_hz = OVERLOAD * fps
        take = node.at_rate(self.seconds, rate_hz)
        for name in node.cameras:
            what = f'rig, {name}: overload' if name else 'overload'
            row = self._row(what, take.of(name))
            waits = 2 * len(node.cameras)
            row.limit_p50_ms = waits * self.bare.percentile(50) + 1e3 / rate_hz
            row.limit_p99_ms = waits * self.bare.percentile(99) + 1e3 / rate_hz
            yield row

    def _row(self, what: str, take: Take) -> Row:
        return Row(
            what,
            self.size,
            *self.bare.inputs(),
            camera_hz=take.rate_hz,
            sent=len(take.shots),
            received=len(take.complete),
            fps=take.fps,
            p50_ms=take.percentile(50, *OUTPUTS),
            p99_ms=take.percentile(99, *OUTPUTS),
            labels_p50_ms=take.percentile(50, 'labels'),
            labels_p99_ms=take.percentile(99, 'labels'),
            publish_ms=float(np.median([shot.publish_ms for shot in take.shots])),
            cpu_percent=take.meter.cpu_percent,
            own_mib=take.meter.own_mib,
            rss_mib=take.meter.rss_mib,
        )


def all_series(options: argparse.Namespace) -> Iterator[Series]:
    """Give the sizes, each with the networks' input as configured and, where larger, whole."""
    content = yaml.safe_load((CONFIG / 'drive.yaml').read_text(encoding='utf-8'))
    configured = {**content['/**']['ros__parameters'], **FIXED, **options.set}
    world = RoadWorld(3, RoadWorldSettings(height=512, width=1024))
    frames = [world.frame(40 + at).image for at in range(FRAMES)]
    for size in options.size:
        images: list[Image] = [
            np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
            for frame in frames
        ]
        seen = set()
        for parameters in (configured, {**configured, **WHOLE}):
            bare = Bare(parameters, images)
            if bare.inputs() in seen:
                continue
            seen.add(bare.inputs())
            yield Series(f'{size[0]}x{size[1]}', images, parameters, bare, options.seconds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='node', description=__doc__.splitlines()[1])
    parser.add_argument(
        '--seconds', type=float, default=3.0, help='of each measurement; default: %(default)s'
    )
    parser.add_argument(
        '--size',
        nargs='+',
        type=_size,
        default=SIZES,
        metavar='WIDTHxHEIGHT',
        help='of the images; default: 480x360 1024x512 2048x1024',
    )
    parser.add_argument(
        '--cameras',
        nargs='+',
        type=int,
        choices=range(1, len(RIG) + 1),
        default=(1, len(RIG)),
        help='of the node; default: 1 3',
    )
    parser.add_argument(
        '--set',
        nargs='+',
        type=_assignment,
        default={},
        metavar='NAME=VALUE',
        help='other values than those of config/drive.yaml',
    )
    parser.add_argument(
        '--dilation10',
        action='store_true',
        help='labels of the whole image by Dilation10 in full width, with random weights',
    )
    parser.add_argument('--out', type=Path, help='table; default: beside this file')
    return parser


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r'([1-9]\d{0,3})x([1-9]\d{0,3})', text)
    if found is None:
        raise argparse.ArgumentTypeError(f'{text!r} must be WIDTHxHEIGHT, such as 1024x512')
    return int(found[1]), int(found[2])


def dilation10(folder: Path) -> dict[str, Any]:
    """Write random weights of Dilation10, and return the parameters that name them."""
    card = Card(
        'front_end_context',
        {'classes': len(CITYSCAPES), 'width': 'full', 'layers': 10},
        Preprocessing(),
        CITYSCAPES.name,
    )
    path = folder / 'dilation10.safetensors'
    save_weights(path, card.build(), card)
    return {'segmentation_weights': str(path), 'segmentation_width': 0}


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition('=')
    if not equals:
        raise argparse.ArgumentTypeError(f'{text!r} must be NAME=VALUE')
    return name, yaml.safe_load(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and write it; the exit status is 1 where the node does not serve."""
    options = _parser().parse_args(arguments)
    options.set = dict(options.set)
    os.environ.setdefault('FASTDDS_DEFAULT_PROFILES_FILE', str(PROFILE))
    keep_memory()  # as the node does
    rows: list[Row] = []
    print(line(COLUMNS))
    folder = TemporaryDirectory()
    try:
        title = machine(choose_placement(options.set.get('device', 'auto')).device)
        if options.dilation10:
            options.set.update(dilation10(Path(folder.name)))
        for series in all_series(options):
            for cameras in options.cameras:
                for row in series.rows(cameras):
                    rows.append(row)
                    print(line(row.cells()), flush=True)
            placement = series.bare.segmenter.placement
    except DensePerceptionError as error:
        print(f'node: {error}')
        return 1
    finally:
        folder.cleanup()
    title = f'{title}, {placement}'
    print(title)
    kind = f'node-{options.set["engine"]}' if 'engine' in options.set else 'node'
    path = options.out or table_path(kind, placement.device, Path(__file__).parent)
    write_table(path, COLUMNS, (row.cells() for row in rows), title)
    return 0


if __name__ == '__main__':
    sys.exit(main())
