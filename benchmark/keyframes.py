"""
Score labels that are carried along the flow to the frames between keyframes.

`python benchmark/keyframes.py --camvid DATA/camvid`: CamVid's val split is one drive at 15 Hz.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
import sys
import time

from dense_perception.data.segmentation import camvid
from dense_perception.evaluation.result_files import machine, table_path, write_table
from dense_perception.labels import CAMVID, conversion
from dense_perception.metrics.segmentation import ConfusionMatrix
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.keyframes import Keyframes
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.published import find_weights
import numpy as np

INTERVALS = (1, 2, 3, 5)
COLUMNS = ('keyframe every', 'mean IoU', 'of carried frames', 'unlabelled %', 'ms a frame')


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and write it beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--camvid', type=Path, help='folder with val/ and valannot/')
    options = parser.parse_args(arguments)
    if options.camvid is None:
        print('nothing is measured without --camvid')
        return 0
    segmenter = Segmenter.from_file(find_weights('drive'))
    estimator = FlowEstimator.from_file(find_weights('flow'), width=512)
    device = segmenter.placement.device
    title = f'{machine(device)}, {segmenter.placement}'
    print(title)
    samples = list(camvid(options.camvid, 'val'))
    images = [sample.image for sample in samples]
    flows = [estimator.estimate(*pair) for pair in zip(images, images[1:], strict=False)]
    started = time.perf_counter()
    labels = [segmenter.segment(image).labels for image in images]
    labelling_s = (time.perf_counter() - started) / len(images)
    print(*COLUMNS, sep='  ')
    rows = [
        row(interval, samples, labels, flows, labelling_s, segmenter) for interval in INTERVALS
    ]
    write_table(table_path('keyframes', device, Path(__file__).parent), COLUMNS, rows, title)
    return 0


def row(interval, samples, labels, flows, labelling_s: float, segmenter: Segmenter) -> list[str]:
    """Score one interval; time counts labelling and carrying, as flow is made anyway."""
    # What cannot be a class of CamVid, and what has no label, is wrong wherever it lies.
    table = conversion(segmenter.label_set, CAMVID)
    keyframes = Keyframes(interval)
    every, carried = (ConfusionMatrix(len(CAMVID)) for _ in range(2))
    unlabelled, spent = [], 0.0
    for at, sample in enumerate(samples):
        if keyframes.due(sample.image.shape):
            found = labels[at]
            keyframes.set(found)
            spent += labelling_s
        else:
            started = time.perf_counter()
            found = keyframes.carry(flows[at - 1])
            spent += time.perf_counter() - started
            carried.add(table[found], sample.labels)
        every.add(table[found], sample.labels)
        unlabelled.append((found == 255).mean())
    of_carried = f'{carried.mean_iou:.4f}' if interval > 1 else ''
    share = f'{100 * np.mean(unlabelled):.2f}'
    ms = f'{1e3 * spent / len(samples):.1f}'
    cells = [str(interval), f'{every.mean_iou:.4f}', of_carried, share, ms]
    print(*cells, sep='  ', flush=True)
    return cells


if __name__ == '__main__':
    sys.exit(main())
