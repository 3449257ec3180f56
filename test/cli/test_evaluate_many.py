"""Many bags with one command: in one process, spread over workers, interrupted, from a URL."""

import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import cv2
from dense_perception.cli.evaluate import main
from dense_perception.evaluation.report_json import read_report
import fsspec
import numpy as np
import psutil
import pytest

pytestmark = pytest.mark.ros

SMALL = ('--device', 'cpu', '--precision', 'float32', '--width', '64', '--flow-width', '64')
WAIT_S = 300.0


def make_bags(folder, count):
    """Write bags of three frames each with labels, all different; returns their folder."""
    make_bag = pytest.importorskip('dense_perception.cli.make_bag')
    for number in range(count):
        generator = np.random.default_rng(number)
        for name, size in (('pictures', (48, 64, 3)), ('labels', (48, 64))):
            (folder / name / f'{number}').mkdir(parents=True)
            for frame in range(3):
                pixels = generator.integers(0, 256 if name == 'pictures' else 19, size, np.uint8)
                cv2.imwrite(str(folder / name / f'{number}' / f'{frame}.png'), pixels)
        labels = ('--labels', f'{folder}/labels/{number}')
        out = ('--out', f'{folder}/bags/drive_{number}', '--rate', '10')
        assert make_bag.main([f'{folder}/pictures/{number}', *labels, *out]) == 0
    return folder / 'bags'


def figures(out):
    """Return the lines of a report but for that of the run, which tells command and times."""
    lines = (out / 'report.json').read_text().split('\n')
    return [line for line in lines if '"run"' not in line]


@pytest.fixture
def started():
    """Return a function that starts the command as a process of its own; it ends with the test."""
    processes = []

    def start(*arguments):
        tree = str(Path(__file__).parents[2])  # where the command and its workers find the package
        path = os.pathsep.join([tree, os.environ.get('PYTHONPATH', '')])
        command = [sys.executable, '-m', 'dense_perception.cli.evaluate', *arguments]
        # Ray's workers else give way to everything that runs beside them.
        environment = {**os.environ, 'PYTHONPATH': path, 'RAY_worker_niceness': '0'}
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()  # Ray's own processes end with the one that started them
        process.wait()


def wait_for(condition, process):
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert process.poll() is None, 'the command has ended before'
        assert time.monotonic() < deadline, 'what the test waits for does not come'
        time.sleep(0.01)
    return found


def busy_worker(process):
    """Return a worker of the command's cluster that evaluates a bag, if there is one."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline()[:1] == ['ray::_remote']:
                return child
        except psutil.Error:
            continue
    return None


@pytest.mark.parametrize('count', [2, pytest.param(8, marks=pytest.mark.slow)])
def test_bags_on_ray_of_which_one_loses_its_worker_give_the_numbers_of_one_process(
    tmp_path, count, started
):
    pytest.importorskip('ray')
    bags = ('--bags', f'{make_bags(tmp_path, count)}/*', *SMALL)
    assert main([*bags, '--out', f'{tmp_path}/one']) == 0
    process = started(*bags, '--out', f'{tmp_path}/ray', '--ray')
    worker = wait_for(lambda: busy_worker(process), process)
    worker.send_signal(signal.SIGKILL)
    assert process.wait(WAIT_S) == 0
    assert not worker.is_running()
    assert len(read_report(tmp_path / 'ray' / 'report.json').frames) == 3 * count
    assert figures(tmp_path / 'ray') == figures(tmp_path / 'one')


def test_a_command_that_was_killed_goes_on_where_it_was(tmp_path, capsys, started):
    bags = ('--bags', str(make_bags(tmp_path, 6)), *SMALL)
    out = tmp_path / 'out'
    process = started(*bags, '--out', str(out))
    wait_for(lambda: [*out.glob('bags/*.json')], process)
    process.kill()
    process.wait()
    done = len([*out.glob('bags/*.json')])
    assert not (out / 'report.json').exists()
    assert main([*bags, '--out', str(out)]) == 0
    assert capsys.readouterr().out.count('taken over') == done < 6
    assert main([*bags, '--out', f'{tmp_path}/whole']) == 0
    assert figures(out) == figures(tmp_path / 'whole')


def test_bags_at_a_url_give_the_numbers_of_those_here(tmp_path):
    here = make_bags(tmp_path, 2)
    fsspec.filesystem('memory').put(f'{here}/', '/street/', recursive=True)
    for name, place in (('here', str(here)), ('there', 'memory://street')):
        assert main(['--bags', place, *SMALL, '--out', f'{tmp_path}/{name}']) == 0
    one, other = (read_report(tmp_path / name / 'report.json') for name in ('here', 'there'))
    assert [source.name for source in other.sources] == [
        f'memory:///street/drive_{number}' for number in range(2)
    ]
    assert [frame.labels for frame in one.frames] == [frame.labels for frame in other.frames]
    page = (tmp_path / 'there' / 'report.html').read_text()
    assert page.count('<figure><img') == 3 * 4  # the bags are fetched again for the pictures
