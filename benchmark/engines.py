"""
Time engines and the labelling of pixels, all in turns, with the shipped labelling weights.

With CamVid's folder, int8 is scaled by its train split and the labels of its val split are scored;
without, rendered frames scale it and nothing is scored. What else the machine does changes times
more than their ratios.
"""

import argparse
from collections.abc import Sequence
import os
from pathlib import Path
import sys
import tempfile

# As the node's process has it; read when torch is imported.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import cv2
from dense_perception.data.road_world import RoadWorld
from dense_perception.data.segmentation import camvid, LabelledFolder
from dense_perception.evaluation.result_files import machine, table_path, write_table
from dense_perception.evaluation.segmentation import evaluate_segmentation
from dense_perception.labels import CAMVID, conversion
from dense_perception.memory import keep_memory
from dense_perception.predictors import labelling
from dense_perception.predictors.engines.choice import AUTO, ENGINES, time_in_turns
from dense_perception.predictors.engines.settings import EngineSettings
from dense_perception.predictors.labelling import Enlargement
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.published import find_weights
import numpy as np
import torch
from torch import nn

SIZES = ((360, 480), (512, 1024))
PIXELS = (*SIZES, (1024, 2048))  # labelling alone is timed at these
JUDGED = 12  # frames whose labels are compared with those of torch in float32
PLAIN = 'plain torch float32'
COLUMNS = (
    'input',
    'what',
    'median ms',
    'x',
    'fastest ms',
    'x fastest',
    'equal labels',
    'mean IoU',
)


class Plain(nn.Module):
    """A network with channels first, as torch has it where nobody asks for more."""

    def __init__(self, network):
        super().__init__()
        self._run = (network.to(memory_format=torch.contiguous_format),)

    def forward(self, *inputs):
        """Return the network's output."""
        return self._run[0](*(value.contiguous() for value in inputs))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables and write them beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--camvid', type=Path, help='folder with train/, val/ and so on')
    parser.add_argument('--seconds', type=float, default=20.0, help='timing of each size')
    options = parser.parse_args(arguments)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    keep_memory()  # as the node does; for all alike
    title = machine(torch.device(device))
    print(title)
    show(COLUMNS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        frames, calibration = sources(options.camvid, Path(folder))
        for size in SIZES:
            images = [cv2.resize(image, size[::-1]) for image in frames]
            settings = {'calibration_frames': calibration, 'engine_cache': folder}
            truth = camvid(options.camvid, 'val') if options.camvid and size == SIZES[0] else None
            rows += engines(images, settings, device, truth, options.seconds)
    for size in PIXELS:
        rows += pixels(cv2.resize(frames[0], size[::-1]), options.seconds / 2)
    path = table_path('engines', torch.device(device), Path(__file__).parent)
    write_table(path, COLUMNS, rows, title)
    return 0


def sources(folder: Path | None, spare: Path) -> tuple[list, str]:
    """Return frames to judge engines on, and a folder of those that scale int8."""
    if folder:
        validation = camvid(folder, 'val')
        places = np.linspace(0, len(validation) - 1, JUDGED).astype(int)
        return [validation[at].image for at in places], str(folder / 'train')
    rendered = spare / 'frames'
    rendered.mkdir()
    for seed in range(64):
        image = RoadWorld(seed).frame(40).image
        cv2.imwrite(str(rendered / f'{seed:02}.png'), image[:, :, ::-1])
    return [RoadWorld(100 + seed).frame(40).image for seed in range(JUDGED)], str(rendered)


def engines(images, settings, device, truth: LabelledFolder | None, seconds: float) -> list:
    """Return a row for each engine at the images' size, and what `auto` takes."""
    path = find_weights('drive')
    reference = Segmenter.from_file(path, device=device, precision='float32')
    plain = Segmenter.from_file(path, device=device, precision='float32')
    plain.network = Plain(plain.network)
    segmenters = {PLAIN: plain}
    for name in ENGINES:
        made = EngineSettings(engine=name, engine_agreement=0.0, **settings)
        segmenter = prepared(made, images[:1], device)
        if segmenter.running == name:
            segmenters[name] = segmenter
    calls = {
        name: lambda turn, one=one: one.scores(images[turn % len(images)])
        for name, one in segmenters.items()
    }
    times = time_in_turns(calls, torch.device(device), seconds=seconds)
    choice = prepared(EngineSettings(engine=AUTO, **settings), images, device).running
    expected = [reference.segment(image).labels for image in images]
    rows = []
    for name, segmenter in segmenters.items():
        equal = np.mean([
            segmenter.segment(image).labels == labels
            for image, labels in zip(images, expected, strict=True)
        ])  # fmt: skip
        iou = f'{mean_iou(segmenter, truth):.4f}' if truth else ''
        chosen = f'{name} (auto)' if name == choice else name
        rows.append(row(images[0], chosen, times[name], times[PLAIN], f'{equal:.4%}', iou))
    return rows


def prepared(settings: EngineSettings, images, device: str) -> Segmenter:
    """Return a segmenter that runs in an engine, or says why it does not."""
    segmenter = Segmenter.from_file(
        find_weights('drive'), device=device, engine=settings, tell=print
    )
    segmenter.prepare(images)
    segmenter.scores(images[0])
    return segmenter


def mean_iou(segmenter: Segmenter, truth: LabelledFolder) -> float:
    """Score labels in the classes of CamVid."""
    table = conversion(segmenter.label_set, CAMVID)
    pairs = ((table[segmenter.segment(one.image).labels], one.labels) for one in truth)
    return evaluate_segmentation(pairs, CAMVID).mean_iou


def pixels(image, seconds: float) -> list:
    """Return a row for each way from an image's scores to its labels."""
    height, width = image.shape[:2]
    segmenter = Segmenter.from_file(find_weights('drive'))
    scores = segmenter.scores(image)
    enlarge = Enlargement(scores.shape[2] * 8, scores.shape[3] * 8, height, width)
    classes = scores.shape[1]
    larger = nn.ConvTranspose2d(classes, classes, 16, 8, 4, groups=classes, bias=False)
    larger = larger.requires_grad_(False).to(scores.device)
    calls = {
        'deconvolution, softmax, argmax': lambda _: larger(scores).softmax(1).max(1),
        'interpolation, softmax': lambda _: labelling.reference(scores, enlarge, confidence=True),
        'fused labels': lambda _: labelling.label_pixels(scores, enlarge),
        'fused labels and confidence': lambda _: labelling.label_pixels(
            scores, enlarge, confidence=True
        ),
    }
    if scores.device.type == 'cpu':
        calls['OpenCV labels'] = lambda _: labelling.with_opencv(scores, enlarge)
        calls['OpenCV labels and confidence'] = lambda _: labelling.with_opencv(
            scores, enlarge, confidence=True
        )
    times = time_in_turns(calls, scores.device, seconds=seconds)
    labels, _ = labelling.reference(scores, enlarge)
    first = next(iter(calls))
    rows = []
    for name in calls:
        equal = ''
        if name.startswith('fused'):
            equal = f'{(labelling.label_pixels(scores, enlarge)[0] == labels).mean():.4%}'
        rows.append(row(image, name, times[name], times[first], equal, ''))
    return rows


def row(image, name: str, times, first, equal: str, iou: str) -> list[str]:
    """Print a row and return it: times of a call, and how they compare with the first one's."""
    cells = [f'{image.shape[1]}x{image.shape[0]}', name]
    for typical in (np.median, np.min):
        cells += [f'{typical(times) * 1e3:.2f}', f'{typical(first) / typical(times):.2f}']
    cells += [equal, iou]
    show(cells)
    return cells


def show(cells: Sequence[str]) -> None:
    """Print one line of the table."""
    widths = (10, 32, 10, 7, 11, 10, 13, 9)
    line = ''.join(
        f'{cell:<{width}}' if at < 2 else f'{cell:>{width}}'
        for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    print(line, flush=True)


if __name__ == '__main__':
    sys.exit(main())
