"""
Reports as a page: one file, complete in itself, that loads nothing and works without a network.

The template is `report_page.html.jinja`; what it shows is gathered here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
import math
from pathlib import Path
from typing import Any

from dense_perception.errors import DensePerceptionError
from dense_perception.evaluation import report_charts as charts
from dense_perception.evaluation.report import Figure, FIGURES, percentile, Report
from dense_perception.evaluation.report_comparison import Comparison
from dense_perception.evaluation.report_gates import GateResult
from dense_perception.evaluation.report_json import FORMAT, VERSION, write_whole
from dense_perception.evaluation.report_pictures import (
    Choice,
    data_uri,
    flow_choices,
    flow_legend,
    FrameReader,
    labelled_choices,
)
from dense_perception.evaluation.report_records import FrameRecord, RobotRecord
from dense_perception.metrics.flow import RegionErrors, REGIONS
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
import numpy as np

_MOST_ROWS = 5000  # of the table of frames; a page with more is slow
_SHARE = Figure('', '', '%', lambda _: math.nan)
_PIXELS = Figure('', '', 'px', lambda _: math.nan)
_REGION_TITLES = {
    'all': 'all',
    'noc': 'visible in both',
    'occ': 'occluded in the second',
    's0-10': 'slower than 10 px',
    's10-40': '10 to 40 px',
    's40+': 'faster than 40 px',
}


@dataclass(frozen=True)
class Extras:
    """What a page shows beyond its report."""

    reader: FrameReader = FrameReader()
    comparisons: Sequence[Comparison] = ()
    gates: Sequence[GateResult] = ()


def write_html(report: Report, path: Path, title: str, extras: Extras = Extras()) -> None:
    """
    Write a report as a page; a file is there whole or not at all.

    A frame that cannot be read again is told in its place.

    :param title: of the page, such as the name of the weights.
    :raises InputError: it cannot be written.
    """
    write_whole(path, html(report, title, extras))


def html(report: Report, title: str, extras: Extras = Extras()) -> str:
    """Return a report as a page; see `write_html`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names of files, topics and classes may hold anything
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template('report_page.html.jinja')
    return template.render(
        title=title,
        report=report,
        generator=f'{FORMAT} {VERSION}',
        headlines=_headlines(report),
        gates=extras.gates,
        comparison=_comparison(report, extras.comparisons),
        baselines=[entry.name for entry in extras.comparisons],
        classes=_classes(report, extras.comparisons),
        confusion=_confusion(report),
        label_charts=_label_charts(report),
        regions=_regions(report),
        time_charts=_latency_charts(report)
        + (_robot_charts(report.robot) if report.robot else []),
        galleries=_galleries(report, extras.reader),
        frames=[_frame_row(frame) for frame in report.frames[:_MOST_ROWS]],
    )


def _headlines(report: Report) -> list[dict[str, Any]]:
    """Return the figures that the report has, by their group."""
    figures = report.figures()
    return [
        {
            'title': title,
            'rows': [
                {'name': name, 'figure': FIGURES[name], 'value': figures[name]} for name in names
            ],
        }
        for title, names in groupby(figures, key=lambda name: FIGURES[name].group)
    ]


def _comparison(report: Report, comparisons: Sequence[Comparison]) -> dict[str, Any] | None:
    if not comparisons:
        return None
    figures = [report.figures(), *(entry.baseline.figures() for entry in comparisons)]
    names = [name for name in FIGURES if any(name in column for column in figures)]
    rows = [(entry.name, found) for entry in comparisons for found in entry.differences]
    return {
        'figures': [
            (FIGURES[name], [column.get(name, math.nan) for column in figures]) for name in names
        ],
        'rows': [(name, found, FIGURES[found.name]) for name, found in rows],
        'charts': [
            (f'Difference of {FIGURES[name].title}', _interval_chart(name, rows))
            for name in dict.fromkeys(found.name for _, found in rows)
        ],
    }


def _interval_chart(name: str, rows: Sequence[tuple[str, Any]]) -> Markup:
    share = FIGURES[name].unit == '%'
    unit, factor = ('percentage points', 100) if share else (FIGURES[name].unit, 1)
    shown = [
        (
            baseline,
            factor * found.difference.value,
            factor * found.difference.low,
            factor * found.difference.high,
        )
        for baseline, found in rows
        if found.name == name
    ]
    return Markup(charts.intervals(shown, f'here minus baseline, {unit}'))


def _classes(report: Report, comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return what is known of each class."""
    if not report.segmentation or not report.label_set:
        return []
    counts = report.segmentation
    pixels = counts.confusion.counts.sum(1)
    outlines = counts.boundary.f_measure if counts.boundary else np.full(len(pixels), np.nan)
    others = [
        entry.baseline.segmentation.confusion.iou
        if entry.baseline.segmentation and entry.baseline.label_set == report.label_set
        else np.full(len(pixels), np.nan)
        for entry in comparisons
    ]
    iou, accuracy = counts.confusion.iou, counts.confusion.class_accuracy
    return [
        {
            'name': entry.name,
            'color': '#' + bytes(entry.color).hex(),
            'iou': float(iou[index]),
            'iou_text': _SHARE.text(float(iou[index])),
            'cells': [
                _SHARE.text(float(accuracy[index])),
                _SHARE.text(float(outlines[index])),
                _SHARE.text(float(pixels[index] / max(pixels.sum(), 1))),
                *(_SHARE.text(float(iou[index] - other[index]), signed=True) for other in others),
            ],
        }
        for index, entry in enumerate(report.label_set.classes)
    ]


def _confusion(report: Report) -> dict[str, Any] | None:
    """Return the matrix in shares of each row; the column of no class where it has pixels."""
    if not report.segmentation or not report.label_set:
        return None
    counts = report.segmentation.confusion.counts
    names = list(report.label_set.names)
    if not counts[:, -1].any():
        counts = counts[:, :-1]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return {
        'columns': [*names, 'no class'][: counts.shape[1]],
        'rows': [
            (name, [*zip(shares[row].tolist(), counts[row].tolist(), strict=True)])
            for row, name in enumerate(names)
        ],
    }


def _label_charts(report: Report) -> list[tuple[str, Markup]]:
    found = []
    calibration = report.segmentation.calibration if report.segmentation else None
    if calibration and calibration.pixels.any():
        drawn = charts.reliability(calibration.bins())
        found.append(('Accuracy over confidence; bars: share of the pixels', Markup(drawn)))
    values = [frame.labels.mean_iou for frame in report.frames if frame.labels]
    points = [(float(at), value) for at, value in enumerate(values) if not math.isnan(value)]
    if points:
        drawn = charts.timeline(points, 'frame', 'mean IoU', top=1.0)
        found.append(('Mean IoU of each frame', Markup(drawn)))
    return found


def _regions(report: Report) -> list[tuple[str, list[str]]]:
    if not report.flow:
        return []
    return [
        (_REGION_TITLES[name], _region_cells(report.flow[name]))
        for name in REGIONS
        if name == 'all' or report.flow[name].count
    ]


def _region_cells(errors: RegionErrors) -> list[str]:
    return [
        _PIXELS.text(errors.end_point_error_px),
        _SHARE.text(errors.outlier_share),
        _SHARE.text(errors.long_share),
        FIGURES['angular_error'].text(errors.angular_error_deg),
        f'{errors.count:,}',
    ]


def _latency_charts(report: Report) -> list[tuple[str, Markup]]:
    """Return histogram and timeline for each kind of source, whose times may differ much."""
    kinds = {source.name: source.kind for source in report.sources}
    by_kind: dict[str, list[float]] = {}
    for frame in report.frames:
        if frame.latency_ms is not None:
            by_kind.setdefault(kinds.get(frame.source, ''), []).append(frame.latency_ms)
    found = []
    for kind, values in sorted(by_kind.items()):
        title = f'Latency, {kind}' if kind else 'Latency'
        points = [(float(at), value) for at, value in enumerate(values)]
        found.append((title, _histogram(values, 'latency, ms')))
        drawn = charts.timeline(points, 'frame', 'latency, ms')
        found.append((f'{title}, in the order of frames', Markup(drawn)))
    return found


def _robot_charts(robot: RobotRecord) -> list[tuple[str, Markup]]:
    if not robot.deliveries:
        return []
    starts: dict[str, int] = {}
    for result in robot.deliveries:
        starts.setdefault(result.source, result.stamp_ns)
    ages = [result.age_ms for result in robot.deliveries]
    points = [
        ((result.stamp_ns - starts[result.source]) / 1e9, result.age_ms)
        for result in robot.deliveries
    ]
    drawn = charts.timeline(points, "s since the source's first result", 'age, ms')
    return [
        ('Age of results when they went out', _histogram(ages, 'age, ms')),
        ('Age over time', Markup(drawn)),
    ]


def _histogram(values: Sequence[float], title: str) -> Markup:
    marks = {f'p{rank}': percentile(values, rank) for rank in (50, 95, 99)}
    return Markup(charts.histogram(values, title, marks))


def _galleries(report: Report, reader: FrameReader) -> list[dict[str, Any]]:
    """Return the frames that are shown, with their pictures as data."""
    found = []
    for title, figure, choices, read, legend in (
        ('Labels', _SHARE, labelled_choices(report), reader.labels, ()),
        ('Flow', _PIXELS, flow_choices(report), reader.flow, flow_legend()),
    ):
        if choices and read:
            value_title = 'mean IoU' if figure is _SHARE else 'EPE'
            rows = [
                {
                    'choice': choice,
                    'value': f'{value_title} {figure.text(choice.value)}',
                    **_shown(choice, read),
                }
                for choice in choices
            ]
            keys = [(text, data_uri(picture)) for text, picture in legend]
            found.append({'title': title, 'rows': rows, 'legend': keys})
    return found


def _shown(choice: Choice, read: Any) -> dict[str, Any]:
    try:
        pictures = [(title, data_uri(picture)) for title, picture in read(choice.frame)]
    except DensePerceptionError as error:
        return {'pictures': [], 'problem': str(error)}
    return {'pictures': pictures, 'problem': ''}


def _frame_row(frame: FrameRecord) -> list[tuple[float | str, str]]:
    """Return cells: what they are sorted by, and how they read."""
    iou = frame.labels.mean_iou if frame.labels else math.nan
    error = frame.flow.end_point_error_px if frame.flow else math.nan
    latency = math.nan if frame.latency_ms is None else frame.latency_ms
    stamp = math.nan if frame.stamp_ns is None else frame.stamp_ns / 1e9
    return [
        (frame.source, frame.source),
        (frame.name, frame.name),
        (stamp, '–' if math.isnan(stamp) else f'{stamp:.3f}'),
        (iou, _SHARE.text(iou)),
        (error, _PIXELS.text(error)),
        (latency, FIGURES['latency_p50'].text(latency)),
    ]
