from dataclasses import replace
import itertools
import json
import math
from pathlib import Path
import runpy
import subprocess

from dense_perception.errors import InputError, SettingError
from dense_perception.evaluation import report_run
from dense_perception.evaluation.report import FIGURES, merge, Report
from dense_perception.evaluation.report_comparison import compare, comparison_table
from dense_perception.evaluation.report_gates import check_gates, Gate
from dense_perception.evaluation.report_json import read_report, report_text, write_report
from dense_perception.evaluation.report_records import (
    Delivery,
    FrameRecord,
    LabelCounts,
    ModelRecord,
    RobotRecord,
    RunRecord,
    SegmentationCounts,
)
from dense_perception.evaluation.report_run import RunClock
from dense_perception.labels import CAMVID, CITYSCAPES, LabelClass, LabelSet
from dense_perception.metrics.flow import FlowErrors
from dense_perception.metrics.segmentation import ConfusionMatrix
import numpy as np
import pytest

part = runpy.run_path(str(Path(__file__).with_name('report_parts.py')))['part']

TWO = LabelSet('two', (LabelClass('ground', (9, 9, 9)), LabelClass('sky', (0, 0, 255))))
RUN = RunRecord(
    'evaluate --x', 'c0ffee', 'cpu float32', {'cores': '2'}, {'numpy': '2'}, 'now', 1.5
)


def matrix(rows):
    made = ConfusionMatrix(len(rows))
    made.counts[:, :-1] = rows
    return made


def frame(name, rows, **more):
    return FrameRecord('town', name, labels=LabelCounts.of(matrix(rows)), **more)


def test_reports_of_parts_merge_to_that_of_the_whole_whatever_their_order():
    whole = part(range(6))
    parts = [part([4, 0]), part([5]), part([1, 3, 2])]
    for order in itertools.permutations(parts):
        assert report_text(merge(order)) == report_text(whole)


def test_counts_that_one_part_lacks_are_those_of_the_other():
    labels, flow = replace(part([0]), flow=None), replace(part([1]), segmentation=None)
    merged = merge([labels, flow])
    assert merged.figures()['mean_iou'] == labels.figures()['mean_iou']
    assert merged.figures()['epe'] == flow.figures()['epe']


def test_merged_report_tells_how_the_whole_was_run():
    parts = [part([0], run=RUN), part([1])]
    assert merge(parts).run == RUN
    assert merge(parts, RunRecord('evaluate all')).run.command == 'evaluate all'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda: part([0]), 'town: frame 000000 is there twice'),
        (
            lambda: replace(
                part([1]), models=(ModelRecord('segmentation', 'drive', 'context', 'b2' * 32),)
            ),
            'different segmentation weights do not merge: SHA-256 a1a1.* and b2b2',
        ),
        (lambda: Report(CAMVID), 'reports in cityscapes and camvid do not merge'),
    ],
)
def test_parts_of_different_evaluations_do_not_merge(change, message):
    with pytest.raises(InputError, match=message):
        merge([part([0]), change()])


def test_nothing_does_not_merge():
    with pytest.raises(InputError, match='at least one'):
        merge([])


def test_counts_of_another_label_set_are_refused():
    with pytest.raises(InputError, match='confusion matrix of 2 classes; cityscapes has 19'):
        Report(CITYSCAPES, segmentation=SegmentationCounts(ConfusionMatrix(2)))
    with pytest.raises(InputError, match='frame a has counts of 2 classes; no label set has 0'):
        Report(frames=(frame('a', [[1, 0], [0, 1]]),))


def test_figures_are_those_of_the_counts():
    errors = FlowErrors()
    truth = np.array([[[0, 0], [30, 0]]], np.float32)
    errors.add(truth + np.array([3, 4], np.float32), truth, np.ones((1, 2), bool))
    figures = Report(
        TWO, segmentation=SegmentationCounts(matrix([[6, 2], [1, 1]])), flow=errors
    ).figures()
    assert figures['mean_iou'] == pytest.approx((6 / 9 + 1 / 4) / 2)
    assert figures['pixel_accuracy'] == 0.7
    assert figures['mean_accuracy'] == pytest.approx((6 / 8 + 1 / 2) / 2)
    assert figures['epe'] == figures['epe_s0_10'] == figures['epe_s10_40'] == 5
    assert figures['fl'] == 1


def test_figures_that_were_not_measured_are_not_there():
    assert Report().figures() == {}
    names = set(Report(TWO, segmentation=SegmentationCounts(matrix([[6, 2], [1, 1]]))).figures())
    assert 'mean_iou' in names
    assert not names & {'category_iou', 'instance_iou', 'epe', 'boundary_f_measure', 'frames_in'}


def test_category_iou_forgives_what_is_wrong_within_a_category():
    counts = np.zeros((19, 19), int)
    road, sidewalk, car = (CITYSCAPES.index(name) for name in ('road', 'sidewalk', 'car'))
    counts[road, sidewalk] = counts[sidewalk, road] = counts[car, car] = 5
    figures = Report(CITYSCAPES, segmentation=SegmentationCounts(matrix(counts))).figures()
    assert figures['category_iou'] == 1
    assert figures['mean_iou'] == pytest.approx(1 / 3)


def test_every_figure_of_labels_flow_and_time_is_there_where_all_was_evaluated():
    figures = part(range(3)).figures()
    assert {name for name, figure in FIGURES.items() if figure.group != 'Robot'} == set(figures)


def test_robot_counts_what_became_of_its_images():
    first = RobotRecord(5, 2, 0, (Delivery('town', 2, 40.0), Delivery('town', 1, 20.0)))
    second = RobotRecord(2, 0, 1, (Delivery('town', 3, 30.0),), matrix([[3, 1], [0, 0]]))
    figures = Report(TWO, robot=first + second).figures()
    assert (figures['frames_in'], figures['frames_out']) == (7, 3)
    assert (figures['frames_dropped'], figures['frames_bad']) == (2, 1)
    assert figures['age_p50'] == 30
    assert figures['age_p95'] == pytest.approx(39)
    assert figures['delivered_pixel_accuracy'] == 0.75
    assert report_text(Report(TWO, robot=first + second)) == report_text(
        Report(TWO, robot=second + first)
    )


def test_what_is_read_is_what_was_written(tmp_path):
    robot = RobotRecord(3, 1, 0, (Delivery('town', 1, 20.5),), ConfusionMatrix(19))
    report = replace(part(range(4), run=RUN), robot=robot)
    write_report(report, tmp_path / 'new' / 'report.json')
    read = read_report(tmp_path / 'new' / 'report.json')
    assert report_text(read) == report_text(report)
    assert read.figures() == report.figures()
    assert read.frames == report.frames
    assert (read.run, read.robot.deliveries) == (RUN, robot.deliveries)
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['report.json']


def test_empty_report_is_written_and_read(tmp_path):
    write_report(Report(), tmp_path / 'report.json')
    assert report_text(read_report(tmp_path / 'report.json')) == report_text(Report())


def test_two_runs_differ_in_the_line_run_alone():
    first = part(range(3), run=RUN)
    slower = [replace(frame, latency_ms=99.0) for frame in first.frames]
    second = replace(first, frames=tuple(slower), run=RunRecord('evaluate --y'))
    lines = zip(report_text(first).splitlines(), report_text(second).splitlines(), strict=True)
    assert [a.split(':')[0] for a, b in lines if a != b] == [' "run"']


def test_flow_that_is_not_finite_is_written_as_a_number_that_is_not_known(tmp_path):
    errors = FlowErrors()
    errors.add(
        np.full((1, 1, 2), np.nan, np.float32),
        np.zeros((1, 1, 2), np.float32),
        np.ones((1, 1), bool),
    )
    report = Report(flow=errors, frames=(FrameRecord('town', 'a', flow=errors['all']),))
    write_report(report, tmp_path / 'report.json')
    read = read_report(tmp_path / 'report.json')
    assert math.isnan(read.flow['all'].end_point_error_px)
    assert read.figures() == {'fl': 1.0}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'format': 'other'}, 'no report'),
        ({'version': 2}, 'report of version 2; version 1 is read'),
        ({'frames': None}, 'frames is None; it must be list'),
        ({'frames': []}, '2 latencies of 0 frames'),
        ({'label_set': None}, 'report of labels without a label set'),
        ({'models': ['drive']}, "ModelRecord is 'drive'"),
        ({'flow': {}}, 'all is missing'),
        (
            {
                'label_set': {
                    'name': 'x',
                    'classes': [{'name': 'a', 'color': [1, 2, 256], 'category': ''}],
                }
            },
            'color is',
        ),
    ],
)
def test_damaged_report_is_refused_by_what_is_wrong_with_it(tmp_path, change, message):
    path = tmp_path / 'report.json'
    write_report(part(range(2)), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=f'report.json: .*{message}'):
        read_report(path)


@pytest.mark.parametrize('count', [-1, 1.5, 2**32])
def test_pixels_of_a_frame_that_are_no_count_of_pixels_are_refused(tmp_path, count):
    path = tmp_path / 'report.json'
    write_report(part(range(2)), path)
    content = json.loads(path.read_text())
    content['frames'][0]['labels']['right'][0] = count
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match='must be counts, at most 4294967295'):
        read_report(path)


def test_file_that_is_no_json_or_is_missing_is_refused(tmp_path):
    (tmp_path / 'cut.json').write_text(report_text(part([0]))[:200])
    with pytest.raises(InputError, match='cut.json: no report'):
        read_report(tmp_path / 'cut.json')
    with pytest.raises(InputError, match='none.json: cannot be read'):
        read_report(tmp_path / 'none.json')


@pytest.mark.parametrize(
    ('text', 'lowest', 'passed', 'said'),
    [
        ('mean_iou=0.60', True, False, 'mean_iou is 45.83 %, below 60.00 %'),
        ('mean_iou = 0.4', True, True, 'mean_iou is 45.83 %, above 40.00 %'),
        ('pixel_accuracy=0.7', True, True, 'pixel_accuracy is 70.00 %, at 70.00 %'),
        ('pixel_accuracy=0.7', False, True, 'pixel_accuracy is 70.00 %, at 70.00 %'),
        ('mean_iou=0.4', False, False, 'mean_iou is 45.83 %, above 40.00 %'),
        ('epe=5', False, False, 'epe was not measured; its limit is 5.00 px'),
    ],
)
def test_gate_tells_whether_a_figure_keeps_its_limit(text, lowest, passed, said):
    report = Report(TWO, segmentation=SegmentationCounts(matrix([[6, 2], [1, 1]])))
    [result] = check_gates(report, [Gate.parse(text, lowest=lowest)])
    assert result.passed == passed
    assert str(result) == said


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('mean_iou', 'must be a figure and a limit, like mean_iou=0.60'),
        ('miou=0.5', "gate on 'miou'; figures are mean_iou, category_iou"),
        ('epe=fast', "'fast' is no number"),
        ('epe=nan', 'must be finite'),
        ('mean_iou=60', 'mean_iou is a share; its limit must be 0 to 1'),
    ],
)
def test_gate_that_cannot_be_meant_is_refused(text, message):
    with pytest.raises(SettingError, match=message):
        Gate.parse(text, lowest=True)


def test_differences_are_those_of_the_frames_that_both_reports_have():
    ours, theirs = part(range(0, 9), wrong=0.2), part(range(3, 12), wrong=0.6)
    found = {entry.name: entry for entry in compare(ours, theirs, 'old').differences}
    shared = [part(range(3, 9), wrong=wrong).figures() for wrong in (0.2, 0.6)]
    for name in ('mean_iou', 'epe'):
        entry = found[name]
        assert entry.frames == 6
        assert [entry.value, entry.baseline] == pytest.approx([each[name] for each in shared])
        assert entry.difference.value == pytest.approx(shared[0][name] - shared[1][name])
    assert found['mean_iou'].verdict == 'better'


def test_frames_are_paired_so_that_a_small_gain_in_each_is_clear():
    # Scenes differ much, but in every one the same half pixel is won.
    hard = [FlowErrors() for _ in range(20)]
    easy = [FlowErrors() for _ in range(20)]
    truth, known = np.zeros((2, 2, 2), np.float32), np.ones((2, 2), bool)
    for number in range(20):
        for errors, more in ((hard, 0.5), (easy, 0)):
            flow = truth + np.array([(number % 7) * 4 + more, 0], np.float32)
            errors[number].add(flow, truth, known)
    reports = [
        Report(
            frames=tuple(
                FrameRecord('town', str(n), n, flow=each['all']) for n, each in enumerate(kind)
            )
        )
        for kind in (easy, hard)
    ]
    [entry] = compare(*reports, 'old').differences
    assert entry.difference.value == pytest.approx(-0.5)
    assert (entry.difference.low, entry.difference.high) == pytest.approx((-0.5, -0.5))
    assert entry.verdict == 'better'
    [entry] = compare(*reversed(reports), 'new').differences
    assert entry.verdict == 'worse'


def test_report_against_itself_shows_no_difference():
    report = part(range(8))
    for entry in compare(report, report, 'same').differences:
        assert (entry.difference.value, entry.difference.low, entry.difference.high) == (0, 0, 0)
        assert entry.verdict == 'not clear'


def test_table_of_differences_has_a_line_for_each_figure():
    ours, theirs = part(range(8), error_px=1.0), part(range(8), error_px=4.0)
    head, labels, flow = comparison_table([compare(ours, theirs, 'old.json')]).splitlines()
    assert head.split() == [
        'baseline',
        'figure',
        'here',
        'there',
        'difference',
        '95',
        '%',
        'interval',
        'frames',
    ]
    assert labels.split()[:3] == ['old.json', 'mean', 'IoU']
    assert flow.split()[:2] == ['old.json', 'EPE']
    assert 'better' in flow


def test_reports_without_common_frames_or_classes_are_not_compared():
    report = part([0])
    with pytest.raises(InputError, match='its sources are hill, those of the report town'):
        compare(report, part([0], source='hill'), 'old')
    two = Report(TWO, frames=(frame('000000', [[1, 0], [0, 1]]),))
    with pytest.raises(InputError, match='label sets differ: cityscapes and two'):
        compare(report, two, 'old')


def test_run_is_described_so_that_it_can_be_repeated():
    record = RunClock().describe(['evaluate', '--images', 'my images'], 'cpu float32')
    assert record.command == "evaluate --images 'my images'"
    assert record.versions['numpy'] == np.__version__
    assert int(record.machine['cores']) >= 1
    assert record.wall_s >= 0


def test_commit_is_that_of_the_checkout_that_holds_the_package():
    file = Path(report_run.__file__)
    tracked, head = (
        subprocess.run(['git', '-C', file.parent, *words], capture_output=True, text=True)
        for words in (['ls-files', '--error-unmatch', file.name], ['rev-parse', 'HEAD'])
    )
    expected = head.stdout.strip() if tracked.returncode == 0 else ''
    assert RunClock().describe([], '').commit.removesuffix('-dirty') == expected
