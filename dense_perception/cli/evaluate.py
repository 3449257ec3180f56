"""Score weights on images with truth."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
import sys

from dense_perception.arrays import Flow, Labels, Mask
from dense_perception.data.flow import flow_pairs, FlowPair
from dense_perception.data.segmentation import labelled_folder, LabelledFolder
from dense_perception.errors import DensePerceptionError
from dense_perception.evaluation.flow import evaluate_flow
from dense_perception.evaluation.peers import PEERS
from dense_perception.evaluation.segmentation import evaluate_segmentation
from dense_perception.labels import conversion, LABEL_SETS
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.weights.published import find_weights


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except DensePerceptionError as error:
        print(f'evaluate: {error}', file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='evaluate', description=__doc__)
    commands = parser.add_subparsers(required=True)
    labels = commands.add_parser('segmentation', help='labels against label images')
    labels.add_argument('--weights', default='drive', help='name or file (default: %(default)s)')
    labels.add_argument('--images', type=Path, required=True, help='folder of images')
    labels.add_argument('--labels', type=Path, required=True, help='folder of label images')
    labels.add_argument('--label-set', choices=sorted(LABEL_SETS), default='camvid')
    labels.set_defaults(run=_segmentation)
    flow = commands.add_parser('flow', help='flow against true flow, beside OpenCV on the same')
    flow.add_argument('--weights', default='flow', help='name or file (default: %(default)s)')
    flow.add_argument('--pairs', type=Path, required=True, help='folder with middlebury/, ...')
    flow.set_defaults(run=_flow)
    for command in (labels, flow):
        command.add_argument('--device', default='auto')
        command.add_argument('--precision', default='auto')
        command.add_argument('--width', type=int, default=0, help="input columns; 0: the image's")
    return parser


def _segmentation(options: argparse.Namespace) -> None:
    segmenter = Segmenter.from_file(
        find_weights(options.weights),
        device=options.device,
        precision=options.precision,
        width=options.width,
    )
    label_set = LABEL_SETS[options.label_set]
    folder = labelled_folder(options.images, options.labels, label_set)
    table = conversion(segmenter.label_set, label_set)

    def compared(samples: LabelledFolder) -> Iterator[tuple[Labels, Labels]]:
        for sample in samples:
            yield table[segmenter.segment(sample.image).labels], sample.labels

    report = evaluate_segmentation(compared(folder), label_set)
    for name, iou in report.iou.items():
        print(f'{name:<16} {iou:.4f}')
    print(f'{"mean IoU":<16} {report.mean_iou:.4f}')
    print(f'{"pixel accuracy":<16} {report.pixel_accuracy:.4f}')
    print(f'{report.images} images, {segmenter.placement}')


def _flow(options: argparse.Namespace) -> None:
    estimator = FlowEstimator.from_file(
        find_weights(options.weights),
        device=options.device,
        precision=options.precision,
        width=options.width,
    )
    methods = {options.weights: estimator.estimate, **PEERS}
    pairs = flow_pairs(options.pairs)
    print(f'{"end-point error, px":<34}' + ''.join(f'{name:>12}' for name in (*methods, 'zero')))
    sums = dict.fromkeys((*methods, 'zero'), 0.0)
    for pair in pairs:
        errors = {}
        for name, method in methods.items():
            report = evaluate_flow(_compared(pair, method(pair.first, pair.second)))
            errors[name] = report.end_point_error_px
            errors['zero'] = report.zero_flow_error_px
        for name, error in errors.items():
            sums[name] += error
        _print_row(pair.name, [errors[name] for name in sums])
    _print_row('mean of the pairs', [total / len(pairs) for total in sums.values()])
    print(f'{len(pairs)} pairs, {estimator.placement}')


def _compared(pair: FlowPair, flow: Flow) -> list[tuple[Flow, Flow, Mask]]:
    return [(flow, pair.flow, pair.valid)]


def _print_row(name: str, errors: Sequence[float]) -> None:
    print(f'{name:<34}' + ''.join(f'{error:12.2f}' for error in errors))


if __name__ == '__main__':
    sys.exit(main())
