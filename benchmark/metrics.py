"""
Time the metrics on a pair of 2048x1024 label images, beside cityscapesscripts in the same run.

The C addon of cityscapesscripts is timed, too, where it is built: its source is in that project's
repository alone, so put a checkout in which `CYTHONIZE_EVAL= python setup.py build_ext --inplace`
has run on PYTHONPATH.
"""

from collections.abc import Callable
import copy
from pathlib import Path
import sys
import tempfile

from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as published
import cv2
from dense_perception.data.label_files import cityscapes_instances, LabelCoding
from dense_perception.data.road_world import RoadWorld
from dense_perception.evaluation.result_files import machine, table_path, write_table
from dense_perception.evaluation.timing import time_calls, Timing
from dense_perception.labels import CITYSCAPES, CITYSCAPES_IDS, CITYSCAPES_INSTANCE_AREA
from dense_perception.metrics.boundary import BoundaryMatches
from dense_perception.metrics.calibration import Calibration
from dense_perception.metrics.flow import FlowErrors
from dense_perception.metrics.instances import InstanceCounts
from dense_perception.metrics.segmentation import ConfusionMatrix
import numpy as np
from PIL import Image
import torch

# NumPy 2.4 has dropped this old name, by which cityscapesscripts calls isin.
vars(np).setdefault('in1d', np.isin)

SIZE = (2048, 1024)
CLASSES = len(CITYSCAPES)
CODING = LabelCoding.of_values(CITYSCAPES_IDS)
IDS = np.zeros(256, np.uint8)
IDS[:CLASSES] = [number for number, index in CITYSCAPES_IDS.items() if index != 255]


class Pair:
    """Two label images as arrays and as the pictures that cityscapesscripts reads."""

    def __init__(self, folder: Path, prediction: np.ndarray, truth: np.ndarray) -> None:
        self.prediction, self.truth = prediction, truth
        self.instances = _instances(truth)
        self.prediction_file = folder / 'a_0_0_pred.png'
        self.truth_file = folder / 'a_0_0_gtFine_labelIds.png'
        self.instances_file = folder / 'a_0_0_gtFine_instanceIds.png'
        ids = IDS[truth].astype(np.int32)
        ids = np.where(self.instances >= 0, 1000 * ids + self.instances % 1000, ids)
        cv2.imwrite(str(self.prediction_file), IDS[prediction])
        cv2.imwrite(str(self.truth_file), IDS[truth])
        cv2.imwrite(str(self.instances_file), ids.astype(np.uint16))


def main() -> int:
    """Print the table and write it beside this file."""
    cpu = torch.device('cpu')
    title = machine(cpu)
    print(title)
    world = RoadWorld(3)
    truth, prediction = (
        cv2.resize(world.frame(number).labels, SIZE, interpolation=cv2.INTER_NEAREST)
        for number in (40, 41)
    )
    noise = np.random.default_rng(0).integers(0, CLASSES, (2, *SIZE[::-1]), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(Path(folder), prediction, truth)
        rows = {
            name: time_calls(call, seconds=2)
            for name, call in (_published(pair) | _ours(pair, noise)).items()
        }
    for name, timing in rows.items():
        _print_row(name, timing, rows['counting'].p50_ms)
    columns = ('what, per pair of 2048x1024', 'p50 ms', 'p99 ms', 'calls')
    cells = (
        (name, f'{timing.p50_ms:.3f}', f'{timing.p99_ms:.3f}', timing.calls)
        for name, timing in rows.items()
    )
    write_table(table_path('metrics', cpu, Path(__file__).parent), columns, cells, title)
    return 0


def _published(pair: Pair) -> dict[str, Callable[[], object]]:
    """Return what cityscapesscripts does with a pair; each call has counts of its own."""
    calls: dict[str, Callable[[], object]] = {}
    addon = published.CSUPPORT
    if not addon:
        print('The C addon of cityscapesscripts is not built; its rows are missing.')
    for with_addon in (False, True) if addon else (False,):
        for with_objects in (False, True):
            options = copy.copy(published.args)
            options.evalInstLevelScore = with_objects
            matrix = published.generateMatrix(options)
            objects = published.generateInstanceStats(options)

            def evaluate(addon=with_addon, options=options, matrix=matrix, objects=objects):
                published.CSUPPORT = addon
                files = str(pair.prediction_file), str(pair.truth_file)
                published.evaluatePair(*files, matrix, objects, {}, options)

            name = 'C addon' if with_addon else 'NumPy'
            what = 'a pair with objects' if with_objects else 'a pair'
            calls[f'cityscapesscripts ({name}), {what}'] = evaluate
    files = pair.prediction_file, pair.truth_file
    calls['of which reading, Pillow'] = lambda: [np.array(Image.open(path)) for path in files]
    if addon:
        ids = IDS[pair.prediction], IDS[pair.truth]
        count = published.addToConfusionMatrix.cEvaluatePair
        calls['of which counting, C addon'] = lambda: count(*ids, matrix, options.evalLabels)
    return calls


def _ours(pair: Pair, noise: np.ndarray) -> dict[str, Callable[[], object]]:
    matrix, objects = (
        ConfusionMatrix(CLASSES),
        InstanceCounts(CITYSCAPES, CITYSCAPES_INSTANCE_AREA),
    )
    calibration, boundary, errors = (
        Calibration(CLASSES),
        BoundaryMatches(CLASSES, 17),
        FlowErrors(),
    )
    flow = np.random.default_rng(0).normal(0, 9, (2, *pair.truth.shape, 2)).astype(np.float32)
    known = np.ones(pair.truth.shape, bool)

    def read_and_count(*, with_objects: bool) -> None:
        prediction = CODING.read(pair.prediction_file)
        matrix.add(prediction, CODING.read(pair.truth_file))
        if with_objects:
            objects.add(prediction, cityscapes_instances(pair.instances_file))

    return {
        'counting': lambda: matrix.add(pair.prediction, pair.truth),
        'counting, noise': lambda: matrix.add(*noise),
        'counting and objects': lambda: (
            matrix.add(pair.prediction, pair.truth),
            objects.add(pair.prediction, pair.instances),
        ),
        'reading and counting': lambda: read_and_count(with_objects=False),
        'reading and counting, with objects': lambda: read_and_count(with_objects=True),
        'calibration': lambda: calibration.add(pair.prediction, noise[0], pair.truth),
        'boundary within 17 px': lambda: boundary.add(pair.prediction, pair.truth),
        'flow errors': lambda: errors.add(*flow, known, ~known),
    }


def _instances(truth: np.ndarray) -> np.ndarray:
    """Take every connected area of a class that has objects for one."""
    instances = np.full(truth.shape, -1, np.int32)
    for name in CITYSCAPES_INSTANCE_AREA:
        index = CITYSCAPES.index(name)
        _, areas = cv2.connectedComponents((truth == index).astype(np.uint8))
        instances[areas > 0] = index * 1000 + areas[areas > 0]
    return instances


def _print_row(name: str, timing: Timing, counted_ms: float) -> None:
    faster = f'{timing.p50_ms / counted_ms:7.1f} x counting' if 'cityscapes' in name else ''
    print(f'{name:<52} {timing.p50_ms:8.2f} ms p50 {timing.p99_ms:8.2f} ms p99{faster}')


if __name__ == '__main__':
    sys.exit(main())
