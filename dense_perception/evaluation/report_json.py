"""
Reports as JSON.

Two evaluations of the same weights on the same data give the same bytes, apart from the line
`run`: what differs is kept there, the times that were measured among it. Figures are written for
those who read the file without this package; reading takes the counts.
"""

from collections.abc import Mapping
from dataclasses import asdict
import json
from pathlib import Path
from typing import Any

from dense_perception.errors import DensePerceptionError, InputError
from dense_perception.evaluation.report import FIGURES, Report
from dense_perception.evaluation.report_records import (
    Delivery,
    FrameRecord,
    LabelCounts,
    ModelRecord,
    MOST_PIXELS,
    Problem,
    RobotRecord,
    RunRecord,
    SegmentationCounts,
    SourceRecord,
)
from dense_perception.labels import LabelClass, LabelSet
from dense_perception.metrics.boundary import BoundaryMatches
from dense_perception.metrics.calibration import Calibration
from dense_perception.metrics.flow import FlowErrors, RegionErrors
from dense_perception.metrics.instances import InstanceCounts
from dense_perception.metrics.segmentation import ConfusionMatrix, stored
from dense_perception.metrics.temporal import TemporalConsistency

FORMAT = 'dense_perception report'
VERSION = 1  # of what `to_json` returns; another one is not read


def write_report(report: Report, path: Path) -> None:
    """
    Write a report; a file is there whole or not at all.

    :raises InputError: it cannot be written.
    """
    write_whole(path, report_text(report))


def write_whole(path: Path, text: str) -> None:
    """
    Write a file that is there whole or not at all, and its folder.

    :raises InputError: it cannot be written.
    """
    partial = path.with_name(f'{path.name}.partial')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding='utf-8')
        partial.replace(path)
    except OSError as error:
        raise InputError(f'{path}: cannot be written: {error.strerror}') from error


def report_text(report: Report) -> str:
    """Return the JSON of a report, with a line for each entry and each frame."""
    lines = []
    for key, value in to_json(report).items():
        if isinstance(value, list) and value:
            rows = ',\n  '.join(_text(row) for row in value)
            lines.append(f' {_text(key)}: [\n  {rows}\n ]')
        else:
            lines.append(f' {_text(key)}: {_text(value)}')
    return '{\n' + ',\n'.join(lines) + '\n}\n'


def read_report(path: Path) -> Report:
    """
    Read a report that `write_report` wrote.

    :raises InputError: missing, damaged, no report, or of another version.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise InputError(f'{path}: cannot be read: {error.strerror}') from error
    except ValueError as error:
        raise InputError(f'{path}: no report: {error}') from error
    try:
        return from_json(content)
    except DensePerceptionError as error:
        raise InputError(f'{path}: {error}') from error


def to_json(report: Report) -> dict[str, Any]:
    """Return a report as plain numbers; null where a number is not known."""
    figures = report.figures()
    return {
        'format': FORMAT,
        'version': VERSION,
        'figures': {name: value for name, value in figures.items() if FIGURES[name].repeatable},
        'label_set': asdict(report.label_set) if report.label_set else None,
        'models': [asdict(model) for model in report.models],
        'sources': [asdict(source) for source in report.sources],
        'problems': [asdict(problem) for problem in report.problems],
        'segmentation': _segmentation_json(report.segmentation) if report.segmentation else None,
        'flow': report.flow.to_json() if report.flow else None,
        'temporal': report.temporal.to_json() if report.temporal else None,
        'frames': [_frame_json(frame) for frame in report.frames],
        'run': {
            **asdict(report.run),
            'figures': {
                name: value for name, value in figures.items() if not FIGURES[name].repeatable
            },
            'latency_ms': [frame.latency_ms for frame in report.frames],
            'robot': _robot_json(report.robot) if report.robot else None,
        },
    }


def from_json(content: Any) -> Report:
    """
    Return the report that `to_json` gave.

    :raises InputError: it is none, of another version, or an entry is missing or of another form.
    """
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        raise InputError(f'no report; its format must be {FORMAT!r}')
    if content.get('version') != VERSION:
        raise InputError(f'report of version {content.get("version")}; version {VERSION} is read')
    label_set = _optional(content, 'label_set', _label_set)
    run = stored(content, 'run', dict)
    latencies = stored(run, 'latency_ms', list)
    frames = stored(content, 'frames', list)
    if len(latencies) != len(frames):
        raise InputError(f'{len(latencies)} latencies of {len(frames)} frames; numbers must match')
    return Report(
        label_set,
        tuple(_record(ModelRecord, row) for row in stored(content, 'models', list)),
        tuple(_source(row) for row in stored(content, 'sources', list)),
        tuple(_record(Problem, row) for row in stored(content, 'problems', list)),
        _optional(content, 'segmentation', lambda entry: _segmentation(entry, label_set)),
        _optional(content, 'flow', FlowErrors.from_json),
        _optional(content, 'temporal', TemporalConsistency.from_json),
        tuple(_frame(row, latency) for row, latency in zip(frames, latencies, strict=True)),
        _optional(run, 'robot', _robot),
        _run(run),
    )


def _text(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _optional(content: Mapping[str, Any], key: str, read: Any) -> Any:
    """Return an entry as `read` understands it; None where it is null."""
    if content.get(key, 0) is None:
        return None
    return read(stored(content, key, dict))


def _record(kind: Any, content: Any) -> Any:
    """Return a record all of whose fields are text."""
    if not isinstance(content, dict):
        raise InputError(f'{kind.__name__} is {content!r}; it must have named entries')
    return kind(**{name: stored(content, name, str) for name in kind.__dataclass_fields__})


def _source(content: Any) -> SourceRecord:
    if not isinstance(content, dict):
        raise InputError(f'source is {content!r}; it must have named entries')
    return SourceRecord(
        stored(content, 'name', str),
        stored(content, 'kind', str),
        tuple(map(str, stored(content, 'topics', list))),
        stored(content, 'frames', int),
    )


def _label_set(content: Mapping[str, Any]) -> LabelSet:
    classes = []
    for row in stored(content, 'classes', list):
        if not isinstance(row, dict):
            raise InputError(f'class is {row!r}; it must have name, color and category')
        color = stored(row, 'color', list)
        if len(color) != 3 or not all(type(part) is int and 0 <= part <= 255 for part in color):
            raise InputError(f'color is {color}; it must be three numbers from 0 to 255')
        name, category = stored(row, 'name', str), stored(row, 'category', str)
        classes.append(LabelClass(name, (color[0], color[1], color[2]), category))
    return LabelSet(stored(content, 'name', str), tuple(classes))


def _segmentation_json(counts: SegmentationCounts) -> dict[str, Any]:
    instances = counts.instances
    return {
        'confusion': counts.confusion.to_json(),
        'instances': {**instances.to_json(), 'mean_area': dict(instances.mean_area)}
        if instances
        else None,
        'boundary': counts.boundary.to_json() if counts.boundary else None,
        'calibration': counts.calibration.to_json() if counts.calibration else None,
    }


def _segmentation(content: Mapping[str, Any], label_set: LabelSet | None) -> SegmentationCounts:
    if label_set is None:
        raise InputError('report of labels without a label set')

    def instances(entry: Mapping[str, Any]) -> InstanceCounts:
        areas = stored(entry, 'mean_area', dict)
        for name in areas:
            stored(areas, name, float)
            label_set.index(name)
        return InstanceCounts.from_json(entry, label_set, areas)

    return SegmentationCounts(
        ConfusionMatrix.from_json(stored(content, 'confusion', dict)),
        _optional(content, 'instances', instances),
        _optional(content, 'boundary', BoundaryMatches.from_json),
        _optional(content, 'calibration', Calibration.from_json),
    )


def _frame_json(frame: FrameRecord) -> dict[str, Any]:
    return {
        'source': frame.source,
        'name': frame.name,
        'stamp_ns': frame.stamp_ns,
        'labels': _label_counts_json(frame.labels) if frame.labels else None,
        'flow': frame.flow.to_json() if frame.flow else None,
    }


def _frame(content: Any, latency_ms: Any) -> FrameRecord:
    if not isinstance(content, dict):
        raise InputError(f'frame is {content!r}; it must have named entries')
    stamp = content.get('stamp_ns')
    if not isinstance(stamp, int | None) or not isinstance(latency_ms, float | int | None):
        raise InputError(f'frame: stamp_ns {stamp!r} and latency {latency_ms!r} must be numbers')
    return FrameRecord(
        stored(content, 'source', str),
        stored(content, 'name', str),
        stamp,
        _optional(content, 'labels', _label_counts),
        _optional(content, 'flow', RegionErrors.from_json),
        latency_ms,
    )


def _label_counts_json(labels: LabelCounts) -> dict[str, list[int]]:
    rows = {'right': labels.right, 'true': labels.true, 'predicted': labels.predicted}
    return {name: list(row) for name, row in rows.items()}


def _label_counts(content: Mapping[str, Any]) -> LabelCounts:
    rows = [stored(content, name, list) for name in ('right', 'true', 'predicted')]
    numbers = [number for row in rows for number in row]
    if not all(type(number) is int and 0 <= number <= MOST_PIXELS for number in numbers):
        raise InputError(
            f'labels of a frame: right, true and predicted must be counts, at most {MOST_PIXELS}'
        )
    return LabelCounts(*rows)


def _robot_json(robot: RobotRecord) -> dict[str, Any]:
    return {
        'frames_in': robot.frames_in,
        'frames_dropped': robot.frames_dropped,
        'frames_bad': robot.frames_bad,
        'deliveries': [
            [result.source, result.stamp_ns, result.age_ms] for result in robot.deliveries
        ],
        'delivered': robot.delivered.to_json() if robot.delivered else None,
    }


def _robot(content: Mapping[str, Any]) -> RobotRecord:
    deliveries = stored(content, 'deliveries', list)
    for row in deliveries:
        if not isinstance(row, list) or [type(part) for part in row] not in (
            [str, int, float],
            [str, int, int],
        ):
            raise InputError(f'delivery is {row!r}; it must be source, stamp_ns and age_ms')
    return RobotRecord(
        stored(content, 'frames_in', int),
        stored(content, 'frames_dropped', int),
        stored(content, 'frames_bad', int),
        tuple(Delivery(*row) for row in deliveries),
        _optional(content, 'delivered', ConfusionMatrix.from_json),
    )


def _run(content: Mapping[str, Any]) -> RunRecord:
    machine, versions = (stored(content, name, dict) for name in ('machine', 'versions'))
    return RunRecord(
        stored(content, 'command', str),
        stored(content, 'commit', str),
        stored(content, 'placement', str),
        {str(name): str(value) for name, value in machine.items()},
        {str(name): str(value) for name, value in versions.items()},
        stored(content, 'started', str),
        stored(content, 'wall_s', float),
    )
