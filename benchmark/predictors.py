"""Time labels and flow of one 480x360 frame, beside OpenCV's flow in the same run."""

import csv
from pathlib import Path
import platform
import sys

from dense_perception.data.road_world import RoadWorld
from dense_perception.evaluation.peers import PEERS
from dense_perception.evaluation.timing import time_calls, Timing
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.published import find_weights
import torch


def processor() -> str:
    """Name of the CPU as Linux tells it."""
    lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    names = [line.partition(': ')[2] for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def main() -> int:
    """Print the table and write it beside this file."""
    world = RoadWorld(3)
    first, second = world.frame(40).image, world.frame(41).image
    rows: dict[str, Timing] = {}
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
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
    card = torch.cuda.get_device_name() if device == 'cuda' else processor()
    title = f'{card}, {torch.get_num_threads()} threads, torch {torch.__version__}'
    print(title)
    path = Path(__file__).with_name(f'predictors_{device}.csv')
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(['what', 'p50 ms', 'p99 ms', 'calls', title])
        for name, timing in rows.items():
            print(f'{name:<28} {timing.p50_ms:8.1f} ms p50 {timing.p99_ms:8.1f} ms p99')
            writer.writerow(
                [name, f'{timing.p50_ms:.2f}', f'{timing.p99_ms:.2f}', timing.calls, '']
            )
    return 0


if __name__ == '__main__':
    sys.exit(main())
