"""
Score weights on images with truth.

`offline` runs the networks on every image of a data set or of bags; `replay` plays a bag to the
launched node. Both leave report.json and report.html.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
import sys
from typing import TYPE_CHECKING

from dense_perception.arrays import Flow, Mask
from dense_perception.data.datasets import find_flow, find_labelled, FLOW, LABELLED
from dense_perception.data.flow import flow_pairs, FlowPair
from dense_perception.data.segmentation import labelled_folder
from dense_perception.errors import DensePerceptionError, InputError, SettingError
from dense_perception.evaluation.examples import labelled_reader, pairs_reader
from dense_perception.evaluation.flow import evaluate_flow
from dense_perception.evaluation.many import evaluate_many, find_bags, LOCAL
from dense_perception.evaluation.offline import (
    evaluate_labelled,
    evaluate_pairs,
    known_label_set,
    load_predictors,
    Predictors,
)
from dense_perception.evaluation.peers import PEERS
from dense_perception.evaluation.report import FIGURES, Report
from dense_perception.evaluation.report_comparison import compare, comparison_table
from dense_perception.evaluation.report_gates import check_gates, FAILED_STATUS, Gate
from dense_perception.evaluation.report_html import Extras, write_html
from dense_perception.evaluation.report_json import read_report, write_report
from dense_perception.evaluation.report_pictures import FrameReader
from dense_perception.evaluation.report_run import RunClock
from dense_perception.evaluation.scoring import BOUNDARY_PX
from dense_perception.labels import CAMVID, CITYSCAPES, LabelSet
from dense_perception.predictors.engines.calibration import calibration_state, is_bag
from dense_perception.predictors.engines.choice import AUTO
from dense_perception.predictors.engines.settings import EngineSettings
from dense_perception.settings import PerceptionSettings

if TYPE_CHECKING:
    from dense_perception.ros.bag_evaluation import BagEvaluation


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, FAILED_STATUS where a gate failed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Without a command it is `offline`: evaluate --bags FOLDER
    if words and words[0].startswith('--') and words[0] != '--help':
        words.insert(0, 'offline')
    options = _parser().parse_args(words)
    options.words = words
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except DensePerceptionError as error:
        print(f'evaluate: {error}', file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='evaluate',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    labels = commands.add_parser('segmentation', help='labels against label images')
    labels.add_argument('--weights', default='drive', help='name or file (default: %(default)s)')
    labels.add_argument('--images', type=Path, required=True, help='folder of images')
    labels.add_argument('--labels', type=Path, required=True, help='folder of label images')
    labels.add_argument(
        '--label-set',
        default='',
        help="of the label images (default: camvid for weights of cityscapes, else the weights')",
    )
    labels.add_argument('--out', type=Path, help='folder for report.json and report.html')
    labels.set_defaults(run=_segmentation)
    flow = commands.add_parser('flow', help='flow against true flow, beside OpenCV on the same')
    flow.add_argument('--weights', default='flow', help='name or file (default: %(default)s)')
    flow.add_argument('--pairs', type=Path, required=True, help='folder with middlebury/, ...')
    flow.set_defaults(run=_flow)
    for command in (labels, flow):
        command.add_argument('--device', default='auto')
        command.add_argument('--precision', default='auto')
        command.add_argument('--width', type=int, default=0, help="input columns; 0: the image's")
        _add_engine_options(command)
    offline = commands.add_parser('offline', help='every image of a data set or bags, to a report')
    source = offline.add_mutually_exclusive_group(required=True)
    source.add_argument('--data', choices=sorted({*LABELLED, *FLOW}), help='data set')
    source.add_argument('--bag', action='append', help='bag or URL of one; may be given again')
    source.add_argument('--bags', metavar='DIR_OR_GLOB', help='bags below it; any fsspec URL')
    offline.add_argument('--root', type=Path, help='folder of the data set, as unpacked')
    offline.add_argument('--split', default='val', help='of the data set (default: %(default)s)')
    offline.add_argument(
        '--ray',
        nargs='?',
        const=LOCAL,
        default='',
        metavar='ADDRESS',
        help="spread bags over a Ray cluster (default: one of this machine's cores)",
    )
    _add_engine_options(offline)
    offline.set_defaults(run=_offline)
    replay = commands.add_parser('replay', help='a bag through the launched node, to a report')
    replay.add_argument('--bag', type=Path, required=True)
    replay.add_argument('--rate', type=float, default=1.0, help='speed; 1 is that of recording')
    # The node that is launched has what its labels and flow run in from its own parameters.
    replay.set_defaults(run=_replay, engine='torch', calibration_frames='')
    for command in (offline, replay):
        _add_report_options(command)
    return parser


def _add_engine_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        '--engine',
        default='torch',
        metavar='NAME',
        help='what the networks run in: torch, auto or the name of one (default: %(default)s)',
    )
    command.add_argument(
        '--calibration-frames',
        default='',
        metavar='PATH',
        help='folder of pictures, video or bag that scales int8',
    )


def _add_report_options(command: argparse.ArgumentParser) -> None:
    usual = PerceptionSettings()
    command.add_argument('--weights', default='drive', help="of labels; '' for none")
    command.add_argument('--flow-weights', default='flow', help="of flow; '' for none")
    command.add_argument('--device', default=usual.device)
    command.add_argument('--precision', default=usual.precision)
    command.add_argument(
        '--width', type=int, default=usual.segmentation_width, help="columns; 0: the image's"
    )
    command.add_argument(
        '--flow-width', type=int, default=usual.flow_width, help="columns; 0: the image's"
    )
    command.add_argument('--refinement', default=usual.refinement)
    command.add_argument('--flow-refinement', default=usual.flow_refinement)
    command.add_argument('--label-set', default='', help="of truth (default: the weights')")
    command.add_argument('--truth', type=Path, help='folder of truth, such as a Cityscapes tree')
    command.add_argument('--image-topic', default='')
    command.add_argument('--labels-topic', default='', help='true labels (default: labels_truth)')
    command.add_argument('--flow-topic', default='', help='true flow (default: flow_truth)')
    command.add_argument('--boundary-px', type=float, default=BOUNDARY_PX)
    command.add_argument(
        '--record', type=Path, metavar='DIR', help='copy bags there, with the results'
    )
    command.add_argument('--out', type=Path, default=Path('out/evaluation'))
    command.add_argument(
        '--baseline', type=Path, action='append', default=[], metavar='REPORT_JSON'
    )
    for option, side in (('--fail-below', 'below'), ('--fail-above', 'above')):
        command.add_argument(
            option,
            action='append',
            default=[],
            metavar='FIGURE=LIMIT',
            help=f'end with status {FAILED_STATUS} where a figure is {side} its limit',
        )


def _settings(options: argparse.Namespace) -> PerceptionSettings:
    return PerceptionSettings(
        segmentation_weights=options.weights,
        flow_weights=options.flow_weights,
        device=options.device,
        precision=options.precision,
        segmentation_width=options.width,
        flow_width=options.flow_width,
        refinement=options.refinement,
        flow_refinement=options.flow_refinement,
        engine=options.engine,
        calibration_frames=_calibration(options),
    )


def _calibration(options: argparse.Namespace) -> str:
    """Return the name of the frames that scale int8, made ready if that is a bag."""
    name: str = options.calibration_frames
    if name and is_bag(Path(name).expanduser()):
        with suppress(ImportError):  # without ROS a bag is refused where it is opened
            from dense_perception.ros.calibration_bags import read_calibration_bags

            read_calibration_bags()
    return name


@dataclass(frozen=True)
class _Evaluated:
    """What a command has found, and where the frames are that its page shows."""

    report: Report
    predictors: Predictors
    reader: FrameReader


def _offline(options: argparse.Namespace) -> int:
    clock = RunClock()
    return _finish(options, clock, _data_set(options) if options.data else _bags(options))


def _data_set(options: argparse.Namespace) -> _Evaluated:
    if options.root is None:
        raise SettingError('--data needs --root, the folder of the data set')
    name = f'{options.data} {options.split}'
    settings = _settings(options)
    if options.data in LABELLED:
        folder = find_labelled(options.data, options.root, options.split)
        predictors = load_predictors(replace(settings, flow_weights=''))
        report = evaluate_labelled(folder, name, predictors, boundary_px=options.boundary_px)
        return _Evaluated(report, predictors, labelled_reader(folder, predictors))
    pairs = find_flow(options.data, options.root, options.split)
    predictors = load_predictors(replace(settings, segmentation_weights=''))
    report = evaluate_pairs(pairs, name, predictors)
    return _Evaluated(report, predictors, pairs_reader(pairs, predictors))


def _bags(options: argparse.Namespace) -> _Evaluated:
    if options.ray and options.engine == AUTO:
        raise SettingError(
            f'--ray with --engine {AUTO}: every worker would choose for itself; name the engine'
        )
    evaluation = _bag_evaluation(options)
    predictors = evaluation.predictors()
    names = find_bags(options.bags) if options.bags else options.bag
    hashes = ' '.join(model.sha256 for model in predictors.models)
    frames = calibration_state(EngineSettings(calibration_frames=options.calibration_frames))
    report = evaluate_many(
        names,
        evaluation,
        options.out / 'bags',
        key=f'{evaluation} {hashes} {frames}',
        ray=options.ray,
        told=lambda line: print(line, flush=True),
    )
    return _Evaluated(report, predictors, evaluation.examples(report))


def _replay(options: argparse.Namespace) -> int:
    from dense_perception.ros.replay import replay_bag

    clock = RunClock()
    evaluation = _bag_evaluation(options)
    replayed = replay_bag(options.bag, evaluation, options.out, rate=options.rate)
    found = _Evaluated(replayed.report, evaluation.predictors(), replayed.reader)
    return _finish(options, clock, found)


def _bag_evaluation(options: argparse.Namespace) -> 'BagEvaluation':
    from dense_perception.ros.bag_evaluation import BagEvaluation
    from dense_perception.ros.labelled_bag import BagChoice

    return BagEvaluation(
        _settings(options),
        BagChoice(options.image_topic, options.labels_topic, options.flow_topic, options.truth),
        options.label_set,
        options.boundary_px,
        options.record,
    )


def _finish(options: argparse.Namespace, clock: RunClock, found: _Evaluated) -> int:
    """Write and print a report; returns the exit status."""
    gates = [Gate.parse(text, lowest=True) for text in options.fail_below]
    gates += [Gate.parse(text, lowest=False) for text in options.fail_above]
    report = found.report
    comparisons = [compare(report, read_report(path), str(path)) for path in options.baseline]
    results = check_gates(report, gates)
    _write(options, clock, found, Extras(found.reader, comparisons, results))
    for name, value in report.figures().items():
        print(f'{FIGURES[name].title:<28} {FIGURES[name].text(value)}')
    if comparisons:
        print(comparison_table(comparisons))
    _print_problems(report)
    for result in results:
        print(f'{"passed" if result.passed else "FAILED"}: {result}')
    print(f'{len(report.frames)} frames, {found.predictors.placement}; report.json and')
    print(f'report.html are in {options.out}')
    if not report.frames:
        raise InputError('no frame was evaluated')
    return 0 if all(result.passed for result in results) else FAILED_STATUS


def _write(
    options: argparse.Namespace, clock: RunClock, found: _Evaluated, extras: Extras
) -> None:
    """Leave report.json and report.html."""
    run = clock.describe(['evaluate', *options.words], found.predictors.placement)
    report = replace(found.report, run=run)
    write_report(report, options.out / 'report.json')
    title = ', '.join(model.name for model in report.models) or 'evaluation'
    write_html(report, options.out / 'report.html', title, extras)


def _print_problems(report: Report) -> None:
    for problem in report.problems:
        place = ' '.join(part for part in (problem.source, problem.topic) if part)
        print(f'{place}: {problem.message}', file=sys.stderr)


def _segmentation(options: argparse.Namespace) -> int:
    clock = RunClock()
    predictors = load_predictors(
        PerceptionSettings(
            segmentation_weights=options.weights,
            flow_weights='',
            device=options.device,
            precision=options.precision,
            segmentation_width=options.width,
            engine=options.engine,
            calibration_frames=_calibration(options),
        )
    )
    assert predictors.segmenter is not None
    label_set = _picture_label_set(options.label_set, predictors.segmenter.label_set)
    folder = labelled_folder(options.images, options.labels, label_set)
    report = evaluate_labelled(folder, str(options.images), predictors)
    _print_problems(report)
    if report.segmentation is None:
        raise InputError(f'{options.images}: no image could be used')
    if options.out:
        found = _Evaluated(report, predictors, labelled_reader(folder, predictors))
        _write(options, clock, found, Extras(found.reader))
    confusion = report.segmentation.confusion
    for name, iou in zip(label_set.names, confusion.iou, strict=True):
        print(f'{name:<16} {iou:.4f}')
    print(f'{"mean IoU":<16} {confusion.mean_iou:.4f}')
    print(f'{"pixel accuracy":<16} {confusion.pixel_accuracy:.4f}')
    print(f'{len(report.frames)} images, {predictors.placement}')
    return 0


def _picture_label_set(name: str, weights: LabelSet) -> LabelSet:
    """Return the label set of label images; street labels at hand are CamVid's."""
    usual = CAMVID.name if weights.names == CITYSCAPES.names else weights.name
    return known_label_set(name or usual, weights)


def _flow(options: argparse.Namespace) -> int:
    predictors = load_predictors(
        PerceptionSettings(
            segmentation_weights='',
            flow_weights=options.weights,
            device=options.device,
            precision=options.precision,
            flow_width=options.width,
            engine=options.engine,
            calibration_frames=_calibration(options),
        )
    )
    estimator = predictors.flow_estimator
    assert estimator is not None
    methods = {options.weights: estimator.estimate, **PEERS}
    pairs = flow_pairs(options.pairs)
    print(f'{"end-point error, px":<34}' + ''.join(f'{name:>12}' for name in (*methods, 'zero')))
    sums = dict.fromkeys((*methods, 'zero'), 0.0)
    for pair in pairs:
        errors = {}
        predictors.prepare_flow(pair.first, pair.second)
        for name, method in methods.items():
            report = evaluate_flow(_compared(pair, method(pair.first, pair.second)))
            errors[name] = report.end_point_error_px
            errors['zero'] = report.zero_flow_error_px
        predictors.engines.check('flow', estimator)
        for name, error in errors.items():
            sums[name] += error
        _print_row(pair.name, [errors[name] for name in sums])
    _print_row('mean of the pairs', [total / len(pairs) for total in sums.values()])
    print(f'{len(pairs)} pairs, {predictors.placement}')
    return 0


def _compared(pair: FlowPair, flow: Flow) -> list[tuple[Flow, Flow, Mask]]:
    return [(flow, pair.flow, pair.valid)]


def _print_row(name: str, errors: Sequence[float]) -> None:
    print(f'{name:<34}' + ''.join(f'{error:12.2f}' for error in errors))


if __name__ == '__main__':
    sys.exit(main())
