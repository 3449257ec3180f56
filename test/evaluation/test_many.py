from dataclasses import dataclass
import os
from pathlib import Path
import signal
import sys

from dense_perception.errors import InputError, SettingError
from dense_perception.evaluation.many import evaluate_many, find_bags, local_copy
from dense_perception.evaluation.report_json import report_text
from dense_perception.evaluation.report_records import SourceRecord
from dense_perception.evaluation.scoring import Result, Sample, Scorer
from dense_perception.labels import CAMVID
import numpy as np
import pytest


@dataclass(frozen=True)
class Labelling:
    """Work whose result depends on the name alone; it notes each call in a file."""

    calls: Path
    broken: str = ''
    killed: str = ''  # the first worker that gets this one dies

    def __call__(self, name):
        with self.calls.open('a') as file:
            file.write(f'{name}\n')
        if name == self.broken:
            raise InputError(f'{name}: not a readable ROS 2 bag')
        if name == self.killed and self.calls.read_text().count(name) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        generator = np.random.default_rng(list(name.encode()))
        scorer = Scorer(SourceRecord(name, 'bag'), CAMVID, CAMVID)
        for number in range(3):
            truth, labels = generator.integers(0, 11, (2, 20, 30), np.uint8)
            image = np.zeros((20, 30, 3), np.uint8)
            scorer.add(Sample(str(number), image, number, truth), Result(labels, truth))
        return scorer.report()


NAMES = [f'bag_{number}' for number in range(8)]


@pytest.fixture
def work(tmp_path):
    return Labelling(tmp_path / 'calls')


def test_bags_are_folders_with_metadata_and_single_files(tmp_path):
    for name in ('a/metadata.yaml', 'a/a_0.mcap', 'b/c.db3', 'd.mcap', 'e/notes.txt'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_bags(str(tmp_path)) == [
        f'{tmp_path}/{name}' for name in ('a', 'b/c.db3', 'd.mcap')
    ]
    assert find_bags(f'{tmp_path}/?') == [f'{tmp_path}/{name}' for name in ('a', 'b/c.db3')]
    assert find_bags(f'{tmp_path}/a') == [f'{tmp_path}/a']
    assert find_bags(f'file://{tmp_path}/*.mcap') == [f'file://{tmp_path}/d.mcap']


def test_a_place_without_bags_is_named(tmp_path):
    with pytest.raises(InputError, match=f'{tmp_path}: no bag there'):
        find_bags(str(tmp_path))


def test_an_unknown_kind_of_url_is_named():
    with pytest.raises(InputError, match='nowhere://x: cannot be reached'):
        find_bags('nowhere://x')


def test_a_bag_in_memory_of_another_file_system_is_fetched_for_its_use(tmp_path):
    import fsspec

    files = fsspec.filesystem('memory')
    files.pipe('/drives/one/metadata.yaml', b'metadata')
    files.pipe('/drives/one/one_0.mcap', b'content')
    (name,) = find_bags('memory://drives')
    with local_copy(name) as path:
        assert (path / 'one_0.mcap').read_bytes() == b'content'
    assert not path.exists()


def test_a_broken_bag_is_listed_and_does_not_stop_the_rest(tmp_path, work):
    lines = []
    work = Labelling(work.calls, broken='bag_1')
    report = evaluate_many(NAMES[:3], work, tmp_path, key='', told=lines.append)
    assert [source.name for source in report.sources] == ['bag_0', 'bag_2']
    (problem,) = report.problems
    assert problem.source == 'bag_1'
    assert 'not a readable' in problem.message
    assert lines[1].startswith('bag_1: not evaluated')


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, work):
    evaluate_many(NAMES[:2], work, tmp_path, key='x')
    lines = []
    report = evaluate_many(NAMES[:4], work, tmp_path, key='x', told=lines.append)
    assert work.calls.read_text().split() == NAMES[:4]
    assert len([line for line in lines if 'taken over' in line]) == 2
    whole = evaluate_many(NAMES[:4], work, tmp_path / 'whole', key='x')
    assert report_text(report) == report_text(whole)


def test_results_of_other_settings_are_not_taken_over(tmp_path, work):
    evaluate_many(NAMES[:1], work, tmp_path, key='x')
    evaluate_many(NAMES[:1], work, tmp_path, key='y')
    assert work.calls.read_text().split() == ['bag_0', 'bag_0']


def test_a_bag_that_has_changed_is_evaluated_again(tmp_path, work):
    bag = tmp_path / 'a.mcap'
    bag.write_bytes(b'1')
    evaluate_many([str(bag)], work, tmp_path / 'out', key='')
    bag.write_bytes(b'22')
    evaluate_many([str(bag)], work, tmp_path / 'out', key='')
    assert len(work.calls.read_text().split()) == 2


def test_a_broken_bag_is_tried_again_in_the_next_run(tmp_path, work):
    evaluate_many(NAMES[:1], Labelling(work.calls, broken='bag_0'), tmp_path, key='')
    assert evaluate_many(NAMES[:1], work, tmp_path, key='').problems == ()


@pytest.mark.slow
def test_eight_bags_on_ray_of_which_one_loses_its_worker_give_the_numbers_of_one_process(
    tmp_path, monkeypatch
):
    ray = pytest.importorskip('ray')
    monkeypatch.setenv('PYTHONPATH', str(Path(__file__).parents[2]))  # where workers find us
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # they have no tests
    alone = evaluate_many(NAMES, Labelling(tmp_path / 'alone'), tmp_path / 'one', key='')
    work = Labelling(tmp_path / 'spread', killed='bag_3', broken='bag_5')
    spread = evaluate_many(NAMES, work, tmp_path / 'ray', key='', ray='local')
    calls = (tmp_path / 'spread').read_text().split()
    assert calls.count('bag_3') == 2  # the worker that was killed and the next one
    assert sorted(set(calls)) == NAMES
    (problem,) = spread.problems
    assert problem.source == 'bag_5'
    work = Labelling(tmp_path / 'rest')
    whole = evaluate_many(NAMES, work, tmp_path / 'ray', key='', ray='local')
    assert work.calls.read_text().split() == ['bag_5']
    assert report_text(whole) == report_text(alone)


def test_a_cluster_that_is_not_there_is_named(tmp_path, work):
    pytest.importorskip('ray')
    with pytest.raises(SettingError, match="no Ray cluster at '127.0.0.1:1'"):
        evaluate_many(NAMES[:1], work, tmp_path, key='', ray='127.0.0.1:1')
