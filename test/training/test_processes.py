from dataclasses import replace
import os
from pathlib import Path
import runpy
import signal
import subprocess
import sys
import time

from dense_perception.training.loop import LAST
import pytest
import torch

TRAINER = Path(__file__).with_name('trainer.py')
trainer = runpy.run_path(str(TRAINER))
SETTINGS, COUNTED, MEAN, train = (
    trainer[name] for name in ('SETTINGS', 'COUNTED', 'MEAN', 'train')
)
ENVIRONMENT = {
    **os.environ,
    'OMP_NUM_THREADS': '1',
    'PYTHONPATH': os.pathsep.join([str(TRAINER.parents[2]), *sys.path]),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Compute here with as many threads as the processes do; sums depend on them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def checkpoint(folder):
    return torch.load(folder / LAST, weights_only=True)


def assert_equal(one, two):
    for part in ('network', 'averaged'):
        for name, value in one[part].items():
            assert torch.equal(value, two[part][name]), f'{part} {name}'
    for index, state in one['optimizer']['state'].items():
        other = two['optimizer']['state'][index]
        assert torch.equal(state['momentum_buffer'], other['momentum_buffer'])


def assert_close(one, two):
    for part in ('network', 'averaged'):
        for name, value in one[part].items():
            torch.testing.assert_close(value, two[part][name], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope='module')
def together(tmp_path_factory):
    """Train with two processes that torchrun starts; returns the folder of their runs."""
    folder = tmp_path_factory.mktemp('together')
    result = subprocess.run(
        [
            *(sys.executable, '-m', 'torch.distributed.run', '--standalone'),
            *('--nproc-per-node', '2', str(TRAINER), 'together', str(folder)),
        ],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return folder


def test_two_processes_take_the_step_of_one_where_the_loss_divides_by_a_count(together, tmp_path):
    train(tmp_path / 'one', COUNTED)
    assert_close(checkpoint(together / 'counted'), checkpoint(tmp_path / 'one'))


def test_two_processes_take_the_step_of_one_where_the_loss_is_a_mean(together, tmp_path):
    train(tmp_path / 'one', MEAN)
    assert_close(checkpoint(together / 'mean'), checkpoint(tmp_path / 'one'))


def test_parts_of_two_processes_give_bit_for_bit_those_of_one(together, tmp_path):
    # Two processes of two parts each add up (a + b) + (c + d); one of four, ((a + b) + c) + d.
    settings = replace(SETTINGS, accumulate=4)
    train(tmp_path / 'one', COUNTED, settings, dropout=0.5)
    assert_close(checkpoint(together / 'dropout'), checkpoint(tmp_path / 'one'))
    train(tmp_path / 'two', COUNTED, replace(SETTINGS, accumulate=2))
    assert_equal(checkpoint(together / 'counted'), checkpoint(tmp_path / 'two'))


def test_only_the_first_process_scores_and_writes(together):
    # Once at step 4, where the first run stopped, and at 6; and before that at step 3.
    assert (together / 'evaluations.txt').read_text().split() == ['0', '0', '0']
    rows = (together / 'counted' / 'log.csv').read_text().splitlines()
    assert [row.split(',')[0] for row in rows] == ['step', '3', '4', '6']


def test_lack_of_memory_in_one_process_stops_all_and_saves_the_state(together, tmp_path):
    first, second = ((together / f'error_{rank}.txt').read_text() for rank in (0, 1))
    assert 'memory of cpu did not suffice for step 4: in another process' in first
    assert 'memory of cpu did not suffice for step 4: ' in second
    assert 'alloc' in second
    state = checkpoint(together / 'greedy')
    assert state['step'] == 4
    train(tmp_path / 'one', COUNTED, stop_at=4)
    assert_close(state, checkpoint(tmp_path / 'one'))


@pytest.mark.parametrize('accumulate', [2, 5])
def test_accumulated_parts_take_the_step_of_the_whole_batch(tmp_path, accumulate):
    for name, task in (('counted', COUNTED), ('mean', MEAN)):
        train(tmp_path / name, task)
        parts = tmp_path / f'{name}_parts'
        train(parts, task, replace(SETTINGS, accumulate=accumulate))
        assert_close(checkpoint(parts), checkpoint(tmp_path / name))


def test_killed_process_goes_on_to_the_parameters_of_an_unbroken_run(tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(TRAINER), 'slowly', str(tmp_path / 'parts')],
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / 'parts' / LAST).exists():
            assert process.poll() is None, 'it ended before its first checkpoint'
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.15)  # into the steps after the checkpoint
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert checkpoint(tmp_path / 'parts')['step'] < 6
    settings = replace(SETTINGS, checkpoint_every=2)
    train(tmp_path / 'parts', COUNTED, settings, dropout=0.5)
    train(tmp_path / 'whole', COUNTED, settings, dropout=0.5)
    parts, whole = (checkpoint(tmp_path / name) for name in ('parts', 'whole'))
    assert parts['step'] == whole['step'] == 6
    assert_equal(parts, whole)
    assert parts['loss'] == whole['loss']
