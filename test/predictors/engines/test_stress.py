"""Engines, caches, cameras and memory that are not what they were."""

import json
import sys
from weakref import ref

from dense_perception.networks.context import FrontEndContext
from dense_perception.networks.flownet import FlowNetCorr, FlowNetSimple
from dense_perception.predictors.device import choose_placement, Placement
from dense_perception.predictors.engines.cache import Cache
from dense_perception.predictors.engines.choice import build_engine, choose_engine, ENGINES
from dense_perception.predictors.engines.engine import equal_labels, Maker, Task
from dense_perception.predictors.engines.engined import Engined, Use
from dense_perception.predictors.engines.in_torch import TorchEngine
from dense_perception.predictors.engines.settings import EngineSettings
from dense_perception.predictors.flow_estimator import FlowEstimator
from dense_perception.predictors.latency import (
    Deadline,
    LADDER,
    MOST_PATIENCE,
    PATIENCE,
    Rung,
    SMALLER,
    UNLIMITED_S,
)
from dense_perception.predictors.segmenter import Segmenter
from dense_perception.predictors.shortage import give_memory_back, is_shortage
from dense_perception.weights.checkpoint import Card, Preprocessing
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
import torch
from torch import nn

WANTED = 'openvino-float32'  # a name that settings take; tests put engines of their own there
FLOAT32 = Placement(torch.device('cpu'), torch.float32)
SHORT = 'OutOfMemoryError: CUDA out of memory'


def scores(seed=0):
    """Return a network of four class scores for each pixel."""
    network = nn.Conv2d(3, 4, 3, padding=1)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return network


def values(seed=0, size=(10, 12)):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))


# Engines that fail let go of what they held.


class Fragile(TorchEngine):
    """An engine that runs out of memory in its first call but one, as its building tests it."""

    calls = 0

    def __call__(self, *inputs):
        self.calls += 1
        if self.calls > 1:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return super().__call__(*inputs)


def engined(monkeypatch, load, tell):
    """Return a network in an engine, once it was built or given up."""
    monkeypatch.setitem(ENGINES, WANTED, Maker('any', load))
    use = Use(1, lambda *images: images, equal_labels)
    settings = EngineSettings(engine=WANTED, engine_cache='')
    network = Engined(scores(), FLOAT32, settings, use, tell)
    network.prepare([(values(),)])
    return network


def test_an_engine_that_runs_out_of_memory_is_gone_before_torch_takes_its_place(monkeypatch):
    made, alive = [], []

    def load(task, folder):
        engine = Fragile(task.network, FLOAT32)
        made.append(ref(engine))
        return engine

    network = engined(monkeypatch, load, lambda _: alive.append(made[0]() is not None))
    assert alive.pop()
    torch.testing.assert_close(network(values(1)), scores()(values(1)))
    assert network.note == f'{WANTED} failed: {SHORT}; torch takes its place'
    assert alive == [False]


def test_a_build_that_runs_out_of_memory_leaves_nothing_where_torch_takes_its_place(monkeypatch):
    made, alive = [], []

    def load(task, folder):
        half = scores()
        made.append(ref(half))
        raise torch.OutOfMemoryError('CUDA out of memory')

    network = engined(monkeypatch, load, lambda _: alive.append(made[0]() is not None))
    torch.testing.assert_close(network(values(1)), scores()(values(1)))
    assert SHORT in network.note
    assert alive == [False]


# A cache that another version wrote, or that is damaged.


def write(task, folder):
    save_file(task.network.state_dict(), folder / 'weights.safetensors')


def read(task, folder):
    network = scores()
    network.load_state_dict(load_file(folder / 'weights.safetensors'))
    return TorchEngine(network, FLOAT32)


@pytest.fixture
def written(monkeypatch):
    """Leave torch, and an engine of one package that is kept as a file of weights."""
    for name in [name for name in ENGINES if name != 'torch-float32']:
        monkeypatch.delitem(ENGINES, name)
    monkeypatch.setitem(ENGINES, WANTED, Maker('any', read, write, ('safetensors',)))


def task(told):
    inputs = [(values(seed),) for seed in range(2)]
    return Task(scores(), inputs, equal_labels, least_agreement=0.9, tell=told.append)


def install(package, folder, monkeypatch):
    """Have another version of a package installed, as its metadata tells it."""
    place = folder / f'{package}-9.9.dist-info'
    place.mkdir(parents=True)
    (place / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {package}\nVersion: 9.9\n')
    monkeypatch.syspath_prepend(folder)


@pytest.mark.usefixtures('written')
@pytest.mark.parametrize('package', ['torch', 'safetensors'])
@pytest.mark.parametrize('name', [WANTED, 'auto'])
def test_what_other_versions_made_is_made_anew_and_stays(tmp_path, monkeypatch, package, name):
    cache, told = Cache(tmp_path / 'cache'), []
    choose_engine(name, task([]), cache, seconds=0.01)
    before = set(cache.folder.iterdir())
    install(package, tmp_path / 'new', monkeypatch)
    choose_engine(name, task(told), cache, seconds=0.01)
    assert any('built in' in line for line in told)
    assert name != 'auto' or any('is the fastest' in line for line in told)
    assert set(cache.folder.iterdir()) > before
    told.clear()
    choose_engine(name, task(told), cache, seconds=0.01)
    assert told == []


@pytest.mark.usefixtures('written')
@pytest.mark.parametrize(
    'record',
    [b'', b'\x00\xff', b'{', b'[]', b'null', b'{"key": 1, "files": 2}', b'[' * 10**6],
    ids=['empty', 'bytes', 'cut', 'list', 'null', 'other', 'nested'],
)
def test_an_engine_whose_record_is_damaged_is_built_anew(tmp_path, record):
    build_engine(WANTED, task([]), Cache(tmp_path))
    (file,) = tmp_path.glob('*/record.json')
    file.write_bytes(record)
    told = []
    build_engine(WANTED, task(told), Cache(tmp_path))
    assert any('built in' in line for line in told)
    assert json.loads(file.read_bytes())['key']['engine'] == WANTED


@pytest.mark.usefixtures('written')
@pytest.mark.parametrize('damage', ['folder in it', 'link to nowhere', 'link to another folder'])
def test_an_entry_of_another_form_gives_way_to_an_engine_that_is_built_anew(tmp_path, damage):
    cache, told = Cache(tmp_path / 'cache'), []
    build_engine(WANTED, task([]), cache)
    (entry,) = cache.folder.iterdir()
    if damage == 'folder in it':
        (entry / 'more').mkdir()
    else:
        other = tmp_path / 'other'
        entry.rename(other)
        entry.symlink_to(other if damage.endswith('folder') else tmp_path / 'nowhere')
        (other / 'weights.safetensors').write_bytes(b'')
    build_engine(WANTED, task(told), cache)
    assert any('built in' in line for line in told)
    assert [path.name for path in cache.folder.iterdir()] == [entry.name]
    told.clear()
    build_engine(WANTED, task(told), cache)
    assert told == []


# A camera that changes its size.

LABELS = Card('front_end_context', {'classes': 11, 'width': 'compact'}, Preprocessing(), 'camvid')
FLOW = Card('flownet_corr', {'width': 1 / 16}, Preprocessing())
CPU = choose_placement('cpu', 'float32')


def frames(*sizes):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def segmenter(**changes):
    torch.manual_seed(0)
    network = FrontEndContext(11, width='compact')
    nn.init.normal_(network.front_end.final.weight, std=0.3)
    return Segmenter(network, LABELS, CPU, **changes)


def estimator(network, **changes):
    torch.manual_seed(0)
    return FlowEstimator(network(width=1 / 16), FLOW, CPU, **changes)


def settings():
    return EngineSettings(engine='torch-float32', engine_cache='')


@pytest.mark.parametrize('width', [0, 48])
def test_labels_of_each_size_are_those_of_torch_while_engines_come_and_run(width):
    ours, plain = segmenter(width=width, engine=settings()), segmenter(width=width)
    sizes = [(40, 56)] * 5 + [(30, 64)] * 5 + [(40, 56), (30, 64), (17, 23)]
    for image in frames(*sizes):
        np.testing.assert_array_equal(ours.segment(image).labels, plain.segment(image).labels)
        ours.network.wait()
    ours.segment(frames((40, 56))[0])
    assert ours.running == 'torch-float32'


def test_labels_of_a_smaller_width_are_those_of_torch_while_an_engine_runs():
    ours, plain = segmenter(width=64, engine=settings()), segmenter(width=64)
    ours.prepare(frames((48, 64), (48, 64)))
    for width in (64, 48, 32, 64):
        ours.width = plain.width = width
        (image,) = frames((48, 64))
        np.testing.assert_array_equal(ours.segment(image).labels, plain.segment(image).labels)
    assert ours.running == 'torch-float32'


def test_flow_of_each_size_is_that_of_torch_while_engines_come_and_run():
    ours = estimator(FlowNetSimple, engine=settings())
    for size in [(64, 64)] * 5 + [(70, 90)] * 2 + [(64, 64)]:
        pair = frames(size, size)
        expected = estimator(FlowNetSimple).estimate(*pair)
        np.testing.assert_array_equal(ours.estimate(*pair), expected)
        ours.network.wait()
    assert ours.running == 'torch-float32'


@pytest.mark.parametrize('width', [0, 64])
def test_features_of_the_size_before_do_not_change_flow_of_another(width):
    kept = estimator(FlowNetCorr, width=width)
    sizes = [(64, 80)] * 3 + [(70, 130)] * 3 + [(64, 80)] * 3
    images = frames(*sizes)
    for first, second in zip(images, images[1:], strict=False):
        if first.shape == second.shape:
            expected = estimator(FlowNetCorr, width=width).estimate(first, second)
            np.testing.assert_array_equal(kept.estimate(first, second), expected)
    assert kept.features.hits == 3  # one in each run of one size


# Memory that gets short.


def frames_until_a_change(deadline):
    """Measure frames until another rung is chosen; return how many they are."""
    return next(count for count in range(1, 10**5) if deadline.measure(0.0, 0.01))


def test_where_memory_is_short_the_next_smaller_input_is_taken_at_once():
    deadline = Deadline(UNLIMITED_S, SMALLER)
    assert deadline.make_room(SHORT)
    assert deadline.rung == Rung(0.75, 1)
    assert deadline.reason == (
        f'75% of the width, every frame labelled: memory was short for more: {SHORT}'
    )
    assert (deadline.short, deadline.starved) == (SHORT, False)


def test_a_rung_that_saves_no_memory_is_passed_over():
    deadline = Deadline(0.1, LADDER)
    assert deadline.make_room(SHORT)
    assert deadline.rung == Rung(0.75, 1)  # and not the full width of every second frame
    assert deadline.make_room(SHORT)
    assert deadline.rung == Rung(0.5, 1)
    assert not deadline.make_room(SHORT)  # though there are cheaper ones


def test_memory_that_is_short_of_the_smallest_input_is_said_until_a_frame_gets_through():
    deadline = Deadline(UNLIMITED_S, SMALLER)
    assert [deadline.make_room(SHORT) for _ in range(4)] == [True, True, False, False]
    assert deadline.rung == SMALLER[-1]
    assert deadline.starved
    assert deadline.reason == (
        '50% of the width, every frame labelled: the smallest there is, but memory is short: '
        f'{SHORT}'
    )
    deadline.measure(0.0, 0.01)
    assert (deadline.short, deadline.starved) == (SHORT, False)


def test_larger_inputs_are_tried_again_one_by_one():
    deadline = Deadline(UNLIMITED_S, SMALLER)
    deadline.make_room(SHORT)
    deadline.make_room(SHORT)
    assert frames_until_a_change(deadline) == PATIENCE
    assert (deadline.rung, deadline.short) == (Rung(0.75, 1), SHORT)
    assert frames_until_a_change(deadline) == PATIENCE
    assert (deadline.rung, deadline.short) == (Rung(1.0, 1), '')
    assert deadline.reason == (
        f'100% of the width, every frame labelled: memory sufficed for the last {PATIENCE} '
        f'images; it was short before: {SHORT}'
    )


def test_tries_for_which_memory_is_short_become_rare():
    deadline = Deadline(UNLIMITED_S, SMALLER)
    waits = []
    for _ in range(8):
        deadline.make_room(SHORT)
        waits.append(frames_until_a_change(deadline))
    assert waits == [60, 120, 240, 480, 960, MOST_PATIENCE, MOST_PATIENCE, MOST_PATIENCE]


def test_a_limit_of_age_is_held_beside_that_of_memory():
    deadline = Deadline(0.1, LADDER)
    deadline.make_room(SHORT)
    for _ in range(PATIENCE):
        deadline.measure(0.0, 0.09)  # as much as may be: nothing larger is tried
    assert deadline.rung == Rung(0.75, 1)
    for _ in range(PATIENCE):
        deadline.measure(0.0, 0.2)
    assert deadline.rung.scale == 0.5


def allocate(what):
    """Ask for more memory than there is."""
    if what == 'torch':
        torch.empty(2**60)
    elif what == 'numpy':
        np.empty(2**60, np.uint8)
    elif what == 'python':
        bytes(sys.maxsize - 100)
    elif what == 'a device':
        raise torch.OutOfMemoryError('CUDA out of memory')
    elif what == 'lost':
        raise torch.AcceleratorError('CUDA error: unspecified launch failure')
    else:
        torch.zeros(2) @ torch.zeros(3)


@pytest.mark.parametrize(
    ('what', 'short'),
    [
        ('torch', True),
        ('numpy', True),
        ('python', True),
        ('a device', True),
        ('lost', False),
        ('shapes', False),
    ],
)
def test_a_shortage_of_memory_is_told_from_other_errors(what, short):
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate(what)
    assert is_shortage(raised.value) is short
    give_memory_back()  # and there is nothing to do without a CUDA device
