import csv
from pathlib import Path
import sys

import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.ros

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.fixture(scope='module')
def soak():
    sys.path.insert(0, str(TOOLS))
    try:
        import soak

        return soak
    finally:
        sys.path.remove(str(TOOLS))


def samples(soak, count=600, *, leak_mib=0.0, threads=19, seed=1):
    """Ten minutes with noise of 3 MiB, and `leak_mib` more at their end."""
    noise = np.random.default_rng(seed).normal(0, 3, count)
    return [
        soak.Sample(float(i), 700 + noise[i] + leak_mib * i / count, threads, 20, 3)
        for i in range(count)
    ]


def grown(soak, seen):
    return {name for name, (_, surely) in soak.growth(seen).items() if surely > soak.ALLOWED[name]}


@pytest.mark.parametrize('seed', range(5))
def test_noise_is_no_growth(soak, seed):
    assert grown(soak, samples(soak, seed=seed)) == set()


def test_a_leak_above_what_is_allowed_is_growth_and_its_size_is_told(soak):
    seen = samples(soak, leak_mib=40)
    assert grown(soak, seen) == {'memory_mib'}
    change, surely = soak.growth(seen)['memory_mib']
    assert change == pytest.approx(40, abs=2)
    assert 35 < surely < change


def test_a_peak_is_no_growth(soak):
    seen = samples(soak)
    for sample in seen[300:330]:
        sample.memory_mib += 500
    assert grown(soak, seen) == set()


def test_threads_that_are_never_joined_are_growth(soak):
    seen = samples(soak)
    for number, sample in enumerate(seen):
        sample.threads += number // 60
    assert grown(soak, seen) == {'threads'}


def test_a_day_of_samples_is_judged_soon(soak):
    assert grown(soak, samples(soak, 86_400, leak_mib=40)) == {'memory_mib'}


def drawn(soak, seen):
    return soak.picture(seen, 60.0, soak.growth(seen))


def test_the_picture_has_a_strip_for_each_quantity_and_a_row_for_each_fault(soak):
    seen = samples(soak)
    plain = drawn(soak, seen)
    for number, name in enumerate(('burst', 'camera_loss')):
        seen[100 * (number + 1)].fault = name
    faulty = drawn(soak, seen)
    assert plain.shape[1:] == faulty.shape[1:] == (1200, 3)
    assert len(faulty) - len(plain) == 2 * 16
    assert len(plain) > 110 * len(soak.DRAWN)
    red = (faulty == (200, 30, 30)).all(axis=-1)[-62:, 250:]
    assert red.sum(axis=0).astype(bool).sum() == 2  # one mark for each


def test_noise_looks_small_in_the_picture_and_a_leak_large(soak):
    def height(seen):
        blue = (drawn(soak, seen)[34:144, 350:] == (0, 70, 160)).all(axis=-1)
        rows = np.flatnonzero(blue.any(axis=1))
        return rows.max() - rows.min()

    assert height(samples(soak)) < 90
    assert height(samples(soak, leak_mib=200)) > 90


def test_a_picture_of_nothing_can_be_drawn(soak):
    assert drawn(soak, []).shape[1] == 1200


def test_an_unknown_fault_is_refused(soak, capsys):
    assert soak.main(['--faults', 'earthquake']) == 2
    assert 'there are unknown_encoding' in capsys.readouterr().out


@pytest.mark.slow
def test_a_node_that_ends_at_once_is_told_and_leaves_results(
    soak, ros_environment, tmp_path, capsys
):
    wrong = tmp_path / 'wrong.yaml'
    wrong.write_text('/**:\n  ros__parameters:\n    segmentation_width: wide\n')
    launch = ['--launch', f'params_file:={wrong}']
    assert soak.main(['--minutes', '1', '--out', str(tmp_path / 'soak'), *launch]) == 1
    assert 'soak: no labels came' in capsys.readouterr().out
    assert (tmp_path / 'soak' / 'soak.csv').read_text().startswith('time_s,')
    assert cv2.imread(str(tmp_path / 'soak' / 'soak.png')) is not None


@pytest.mark.slow
def test_a_minute_and_a_half_with_every_fault_leaves_results(
    soak, ros_environment, tmp_path, monkeypatch
):
    arguments = ['--minutes', '1.5', '--warm-up', '0.2', '--fault-period', '2']
    launch = ['--launch', 'device:=cpu']
    status = soak.main([*arguments, '--out', str(tmp_path / 'soak'), *launch])
    with (tmp_path / 'soak' / 'soak.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 30  # one a second but for faults that last
    assert {row['fault'] for row in rows} - {''} == set(soak.FAULTS)
    assert float(rows[-1]['processed']) > float(rows[0]['processed'])
    assert cv2.imread(str(tmp_path / 'soak' / 'soak.png')) is not None
    assert status in (0, 1)  # too short to tell a leak from a warm-up
