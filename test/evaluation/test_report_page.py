from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
import json
import os
from pathlib import Path
import re
import runpy
import shutil
import subprocess
from xml.etree import ElementTree

import cv2
from dense_perception.errors import InputError
from dense_perception.evaluation import report_charts as charts
from dense_perception.evaluation.report import Report
from dense_perception.evaluation.report_comparison import compare
from dense_perception.evaluation.report_gates import check_gates, Gate
from dense_perception.evaluation.report_html import Extras, html, write_html
from dense_perception.evaluation.report_json import write_report
from dense_perception.evaluation.report_pictures import (
    data_uri,
    flow_choices,
    flow_pictures,
    FrameReader,
    label_pictures,
    labelled_choices,
)
from dense_perception.evaluation.report_records import (
    Delivery,
    FrameRecord,
    LabelCounts,
    Problem,
    RobotRecord,
    RunRecord,
)
from dense_perception.labels import CITYSCAPES
from dense_perception.metrics.calibration import Calibration
from dense_perception.metrics.segmentation import ConfusionMatrix
import numpy as np
import pytest

parts = runpy.run_path(str(Path(__file__).with_name('report_parts.py')))
part, scene = parts['part'], parts['scene']

CHROMIUM = (
    shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
)
in_browser = pytest.mark.skipif(not CHROMIUM, reason='no Chromium here; apt-get install chromium')
QUIET = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--no-first-run',
    '--enable-logging=stderr',
)

RUN = RunRecord(
    "evaluate --images 'my images'", 'c0ffee', 'cpu float32', {'processor': 'M<1>'}, {'numpy': '2'}
)


class Page(HTMLParser):
    """What a page shows: figures, addresses and text."""

    def __init__(self, text):
        super().__init__()
        self.figures, self.addresses, self.tags, self.words = {}, [], [], []
        self._figure = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.addresses += [values[name] for name in ('src', 'href') if name in values]
        if 'data-figure' in values:
            self._figure = values['data-figure']
            self.figures[self._figure] = [float(values['value'])]

    def handle_data(self, content):
        self.words.append(content)
        if self._figure:
            self.figures[self._figure].append(content)
            self._figure = None


def whole_report():
    robot = RobotRecord(
        9, 1, 0, tuple(Delivery('town', n, 20.0 + n) for n in range(8)), ConfusionMatrix(19)
    )
    return replace(part(range(7), run=RUN), robot=robot)


def read_labels(frame):
    truth, labels, _ = scene(int(frame.name), 0.4)
    return label_pictures(np.zeros((*truth.shape, 3), np.uint8), truth, labels, CITYSCAPES)


def read_flow(frame):
    flow = np.ones((4, 6, 2), np.float32)
    return flow_pictures(np.zeros((4, 6, 3), np.uint8), flow, np.ones((4, 6), bool), flow * 2)


def whole_page():
    report = whole_report()
    extras = Extras(
        FrameReader(read_labels, read_flow),
        [compare(report, part(range(7), wrong=0.9), 'old.json')],
        check_gates(report, [Gate.parse('mean_iou=0.99', lowest=True)]),
    )
    return report, html(report, 'drive', extras)


def test_figures_of_the_page_are_those_of_the_json(tmp_path):
    report, text = whole_page()
    write_report(report, tmp_path / 'report.json')
    content = json.loads((tmp_path / 'report.json').read_text())
    shown = Page(text).figures
    assert {name: value for name, (value, _) in shown.items()} == {
        **content['figures'],
        **content['run']['figures'],
    }
    assert shown['mean_iou'][1] == f'{100 * content["figures"]["mean_iou"]:.2f} %'
    assert shown['epe'][1] == f'{content["figures"]["epe"]:.2f} px'


def test_page_holds_all_that_it_shows():
    page = Page(whole_page()[1])
    # Best, median and worst of labels and of flow, and the keys to the colours of flow.
    assert page.tags.count('img') == 6 * 4 + 2
    assert all(address.startswith(('data:', '#')) for address in page.addresses)
    assert 'link' in page.tags  # else a browser asks for an icon


def test_page_tells_command_commit_weights_machine_limits_and_differences():
    words = ''.join(Page(whole_page()[1]).words)
    for expected in (
        "evaluate --images 'my images'",
        'c0ffee',
        'a1' * 32,
        'M<1>',
        'numpy 2',
        'a message cannot be read',
        'mean_iou is ',
        'Against old.json',
        'traffic light',
    ):
        assert expected in words


def test_same_report_gives_the_same_page():
    assert whole_page()[1] == whole_page()[1]


def test_names_that_look_like_markup_are_shown_as_they_are():
    name = '<script>alert("x")</script>'
    report = Report(
        frames=(FrameRecord(name, name),), problems=(Problem(name, name, name),), run=RUN
    )
    page = Page(html(report, name))
    assert page.tags.count('script') == 1
    assert ''.join(page.words).count(name) == 7  # title twice, frame's row twice, problem 3 times


def test_report_of_nothing_says_so():
    assert 'Nothing could be measured.' in html(Report(), 'nothing')


def test_frame_that_cannot_be_read_again_is_told_in_its_place():
    def missing(frame):
        raise InputError(f'{frame.name}.png: missing')

    text = html(part([3]), 'drive', Extras(FrameReader(labels=missing)))
    assert 'cannot be shown: 000003.png: missing' in text


def test_page_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match=r'report.html: cannot be written'):
        write_html(Report(), tmp_path / 'file' / 'report.html', 'drive')


def labelled(name, right):
    matrix = ConfusionMatrix(19)
    matrix.counts[0, :2] = (right, 10 - right)
    return FrameRecord('town', name, labels=LabelCounts.of(matrix))


def test_best_median_and_worst_frames_are_those_by_mean_iou():
    frames = tuple(labelled(str(n), right) for n, right in enumerate([3, 9, 1, 8, 5]))
    chosen = labelled_choices(Report(CITYSCAPES, frames=frames))
    assert [(each.rank, each.frame.name) for each in chosen] == [
        ('best', '1'),
        ('median', '4'),
        ('worst', '2'),
    ]
    assert chosen[0].value == pytest.approx(0.9 / 2)


def test_frame_is_shown_once_where_there_are_not_three():
    one, two = (
        Report(CITYSCAPES, frames=tuple(labelled(n, 5 + int(n)) for n in names))
        for names in ('0', '01')
    )
    assert [each.rank for each in labelled_choices(one)] == ['best']
    assert [each.rank for each in labelled_choices(two)] == ['best', 'worst']


def test_best_flow_has_the_smallest_error():
    report = part(range(5))
    errors = sorted(frame.flow.end_point_error_px for frame in report.frames)
    assert [each.value for each in flow_choices(report)] == [errors[0], errors[2], errors[4]]


def test_wrong_pixels_are_red_where_truth_is_known():
    image = np.full((1, 3, 3), 100, np.uint8)
    truth, labels = np.array([[0, 1, 255]], np.uint8), np.array([[0, 0, 0]], np.uint8)
    wrong = dict(label_pictures(image, truth, labels, CITYSCAPES))['wrong pixels, red']
    assert (wrong[0, [0, 2]] == 100).all()
    assert wrong[0, 1].tolist() == [230, 30, 30]


def test_error_of_flow_is_bright_where_flow_is_far_off_and_grey_where_truth_is_not_known():
    truth = np.zeros((1, 3, 2), np.float32)
    flow = np.array([[[0, 0], [20, 0], [np.nan, 9]]], np.float32)
    pictures = flow_pictures(
        np.zeros((1, 3, 3), np.uint8), truth, np.array([[True, True, False]]), flow
    )
    true_flow, error = pictures[1][1], pictures[-1][1]
    brightness = error.astype(int).sum(-1)
    assert brightness[0, 1] > 600 > 30 > brightness[0, 0]
    assert error[0, 2].tolist() == true_flow[0, 2].tolist() == [128, 128, 128]


def test_picture_in_the_page_is_a_small_jpeg_in_its_colours():
    address = data_uri(np.full((300, 960, 3), (200, 50, 20), np.uint8))
    content = b64decode(address.removeprefix('data:image/jpeg;base64,'))
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert picture.shape == (150, 480, 3)
    assert np.abs(picture.astype(int) - (200, 50, 20)).max() < 8


def elements(svg, style):
    return [each for each in ElementTree.fromstring(svg).iter() if each.get('class') == style]


def test_points_of_a_perfect_calibration_lie_on_the_diagonal():
    calibration = Calibration(1)
    calibration.pixels[[51, 204]] = 10, 20
    calibration.right[[51, 204]] = 2, 16
    svg = charts.reliability(calibration.bins(10))
    [diagonal] = elements(svg, 'zero')
    x1, y1, x2, y2 = (float(diagonal.get(name)) for name in ('x1', 'y1', 'x2', 'y2'))
    dots = elements(svg, 'dot')
    for dot, share in zip(dots, (0.2, 0.8), strict=True):
        assert float(dot.get('cx')) == pytest.approx(x1 + share * (x2 - x1), abs=0.01)
        assert float(dot.get('cy')) == pytest.approx(y1 + share * (y2 - y1), abs=0.01)


def test_bars_of_a_histogram_have_the_heights_of_its_counts():
    svg = charts.histogram([0.0] * 6 + [10.0] * 3, 'latency, ms', {'p50': 0.0})
    heights = [float(bar.get('height')) for bar in elements(svg, 'bar')]
    assert heights[0] == pytest.approx(2 * heights[-1], abs=0.02)
    assert max(heights[1:-1]) == 0
    assert [mark.find('{*}title') is None for mark in elements(svg, 'mark')] == [False]


def test_timeline_of_many_points_keeps_the_peak():
    points = [(float(n), 1.0) for n in range(100_000)]
    points[70_001] = (70_001.0, 500.0)
    [path] = elements(charts.timeline(points, 'frame', 'ms'), 'dots')
    heights = [float(y) for y in re.findall(r' ([\d.]+)h0', path.get('d'))]
    assert len(heights) <= 1500
    assert heights.count(min(heights)) == 1


@pytest.mark.parametrize(
    ('points', 'top'), [([(0.0, 0.0)], 0.0), ([(5.0, 7.0)], 0.0), ([(0.0, 1e-9), (1e9, 3e9)], 0.0)]
)
def test_timeline_of_any_range_has_numbers_at_its_axes(points, top):
    texts = [each.text for each in elements(charts.timeline(points, 'x', 'y', top), 'label')]
    assert 6 <= len(texts) <= 24


def test_interval_that_is_not_known_is_drawn_as_its_value_alone():
    svg = charts.intervals([('a', 1.0, float('nan'), float('nan')), ('b', -1.0, -2.0, 0.5)], 'px')
    assert len(elements(svg, 'dot')) == 2
    assert len(elements(svg, 'line')) == 1


def opened(page, folder):
    """Open a page in Chromium; returns what became of it, the console and the page's requests."""
    log = folder / 'network.json'
    done = subprocess.run(
        [
            CHROMIUM,
            *QUIET,
            '--host-resolver-rules=MAP * ~NOTFOUND',  # the browser's own requests end here, too
            f'--user-data-dir={folder / "profile"}',
            f'--log-net-log={log}',
            '--dump-dom',
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, 'HOME': str(folder)},
    )
    assert done.returncode == 0, done.stderr
    # Requests of the browser itself have no page as their origin.
    requests = [
        event['params']['url']
        for event in json.loads(log.read_text())['events']
        if event.get('params', {}).get('initiator', 'not an origin') != 'not an origin'
    ]
    return done.stdout, [line for line in done.stderr.splitlines() if 'CONSOLE' in line], requests


@in_browser
def test_page_opens_without_error_or_request_and_shows_the_figures(tmp_path):
    report, text = whole_page()
    (tmp_path / 'report.html').write_text(text)
    shown, console, requests = opened(tmp_path / 'report.html', tmp_path)
    assert console == []
    assert requests == []
    assert {name: value for name, (value, _) in Page(shown).figures.items()} == report.figures()


@in_browser
def test_errors_and_requests_of_a_page_would_be_noticed(tmp_path):
    (tmp_path / 'bad.html').write_text(
        '<!DOCTYPE html><img src="http://127.0.0.1:9/x.png"><script>nothing.here();</script>'
    )
    _, console, requests = opened(tmp_path / 'bad.html', tmp_path)
    assert any('ReferenceError' in line for line in console)
    assert 'http://127.0.0.1:9/x.png' in requests


@in_browser
def test_click_on_a_column_sorts_the_frames_and_on_the_button_turns_dark(tmp_path):
    report, text = whole_page()
    clicks = (
        "<script>document.querySelectorAll('#frame-table th')[3].click();"
        "document.getElementById('theme').click();</script></body>"
    )
    (tmp_path / 'report.html').write_text(text.replace('</body>', clicks))
    shown, console, _ = opened(tmp_path / 'report.html', tmp_path)
    assert console == []
    rows = re.findall(r'<td class="left">(\d{6})</td>', shown)
    by_iou = sorted(report.frames, key=lambda frame: frame.labels.mean_iou)
    assert rows == [frame.name for frame in by_iou]
    assert '<html lang="en" data-theme="dark">' in shown
