"""Time labels and flow of one 480x360 frame, beside OpenCV's flow in the same run."""

import os
from pathlib import Path
import sys

# As the node's process has it; read when torch is imported.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import cv2
from dense_perception.data.road_world import RoadWorld
from dense_perception.evaluation.peers import PEERS
from dense_perception.evaluation.result_files import machine, table_path, write_table
from dense_perception.evaluation.timing import time_calls, Timing
from dense_perception.networks.flownet import FlowNetCorr
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.engines.choice import time_in_turns
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.flow_features import KeptFeatures
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.checkpoint import Card, Preprocessing
from dense_perception.weights.published import find_weights
from dilation import shift_by_shift
import numpy as np
import torch

SECONDS = 10.0  # for which the ways of one network are timed


class Looped(FlowNetCorr):
    """The same with one product of whole feature maps for each of the 441 shifts."""

    def compare(self, first, second):
        """Return the first image's reduced features joined with the correlation of both."""
        matches = torch.nn.functional.leaky_relu(shift_by_shift(first, second), 0.1)
        return torch.cat([self.conv_redir(first), matches], 1)


def correlating(device: str) -> dict[str, Timing]:
    """Time FlowNetCorr on a stream of 512x384 images, in turns; print how the ways compare."""
    images = [cv2.resize(RoadWorld(3).frame(40 + at).image, (512, 384)) for at in range(8)]
    rows = {}
    for width in (0.25, 1.0):
        card = Card('flownet_corr', {'width': width}, Preprocessing())
        ways = {
            'shift by shift': (Looped(width=width), False),
            'in bands': (FlowNetCorr(width=width), False),
            'in bands, features kept': (FlowNetCorr(width=width), True),
        }
        calls = {}
        for name, (network, kept) in ways.items():
            estimator = FlowEstimator(network, card, choose_placement(device))
            calls[name] = lambda turn, e=estimator, kept=kept: next_pair(e, images, turn, kept)
        times = time_in_turns(calls, torch.device(device), seconds=SECONDS)
        slowest = np.median(times['shift by shift'])
        for name, values in times.items():
            p50, p99 = np.percentile(values, (50, 99)) * 1e3
            rows[f'FlowNetCorr x {width}, {name}'] = Timing(p50, p99, len(values))
            print(f'FlowNetCorr x {width}, {name}: {slowest / np.median(values):.2f} x')
    return rows


def next_pair(estimator: FlowEstimator, images, turn: int, kept: bool) -> None:
    """Estimate flow to the next image of a loop that is longer than what is kept of it."""
    if not kept:
        estimator.features = KeptFeatures()
    at = turn % len(images)
    estimator.estimate(images[at], images[(at + 1) % len(images)])


def main() -> int:
    """Print the table and write it beside this file."""
    world = RoadWorld(3)
    first, second = world.frame(40).image, world.frame(41).image
    rows: dict[str, Timing] = {}
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    title = machine(torch.device(device))
    print(title)
    for precision in ('float32', 'float16' if device == 'cuda' else 'bfloat16'):
        options = {'device': device, 'precision': precision}
        segmenter = Segmenter.from_file(find_weights('drive'), **options)
        estimator = FlowEstimator.from_file(find_weights('flow'), width=512, **options)
        rows[f'labels, {device} {precision}'] = time_calls(lambda s=segmenter: s.segment(first))
        rows[f'flow, {device} {precision}'] = time_calls(
            lambda e=estimator: e.estimate(first, second)
        )
    for name, method in PEERS.items():
        rows[f'flow, OpenCV {name}'] = time_calls(lambda m=method: m(first, second))
    rows |= correlating(device)
    for name, timing in rows.items():
        print(f'{name:<28} {timing.p50_ms:8.1f} ms p50 {timing.p99_ms:8.1f} ms p99')
    path = table_path('predictors', torch.device(device), Path(__file__).parent)
    cells = (
        (name, f'{timing.p50_ms:.2f}', f'{timing.p99_ms:.2f}', timing.calls)
        for name, timing in rows.items()
    )
    write_table(path, ('what', 'p50 ms', 'p99 ms', 'calls'), cells, title)
    return 0


if __name__ == '__main__':
    sys.exit(main())
