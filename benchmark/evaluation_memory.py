"""
Show that evaluating a long bag takes no more memory than a short one, but for its table.

Memory that Python holds is counted by tracemalloc, before the report is dropped.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
import time
import tracemalloc

from dense_perception.data.drives import DriveFrame
from dense_perception.ros.bag_evaluation import BagEvaluation
from dense_perception.ros.bags import write_drive
from dense_perception.settings import PerceptionSettings
import numpy as np
import psutil

PERIOD_NS = 33_333_333


def drive(count):
    """Yield small random images with random labels."""
    generator = np.random.default_rng(0)
    for number in range(count):
        image = generator.integers(0, 256, (48, 64, 3), np.uint8)
        labels = generator.integers(0, 19, (48, 64), np.uint8)
        yield DriveFrame(10**9 + number * PERIOD_NS, image, labels)


def main():
    """Print the memory of this process after bags of growing length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--frames', type=int, nargs='*', default=[100, 1000, 10_000])
    settings = PerceptionSettings(device='cpu', segmentation_width=64, flow_weights='')
    evaluation = BagEvaluation(settings)
    evaluation.predictors()
    print('frames,seconds,resident_MiB,python_KiB,python_peak_KiB,python_bytes_per_frame')
    for count in parser.parse_args().frames:
        with TemporaryDirectory() as folder:
            path = Path(folder) / 'bag'
            write_drive(path, drive(count))
            started = time.monotonic()
            tracemalloc.start()
            report = evaluation(str(path))
            held, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            seconds = time.monotonic() - started
        assert len(report.frames) == count
        resident = psutil.Process().memory_info().rss / 2**20
        print(
            f'{count},{seconds:.1f},{resident:.0f},{held / 1024:.0f},{peak / 1024:.0f},'
            f'{held / count:.0f}',
            flush=True,
        )


if __name__ == '__main__':
    main()
