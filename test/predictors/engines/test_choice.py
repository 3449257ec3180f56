from dataclasses import replace
import json
import shutil
import sys
import time

from dense_perception.errors import InputError, SettingError
from dense_perception.predictors.device import Placement
from dense_perception.predictors.engines.cache import Cache
from dense_perception.predictors.engines.choice import (
    build_engine,
    choose_engine,
    ENGINES,
    time_in_turns,
)
from dense_perception.predictors.engines.engine import (
    close_flow,
    EngineError,
    equal_labels,
    Maker,
    Task,
)
from dense_perception.predictors.engines.in_torch import TorchEngine
import pytest
from safetensors.torch import load_file, save_file
import torch
from torch import nn

ON_CPU = [name for name, maker in ENGINES.items() if maker.device != 'cuda']
ON_GPU = [name for name, maker in ENGINES.items() if maker.device != 'cpu']
QUICK = [name for name in ON_CPU if not name.startswith('compiled')]  # that one takes a minute
CPU = torch.device('cpu')


class Scores(nn.Module):
    """Six class scores at half the size, from one or two images."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 6, 3, padding=1),
        )
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def forward(self, *images):
        return self.layers(sum(images))


class DependsOnData(Scores):
    """A network that no exporter can follow."""

    def forward(self, image):
        return super().forward(image if image.sum().item() > 0 else -image)


def inputs(count, seed=0, images=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.randn(1, 3, 16, 24, generator=generator) for _ in range(images))
        for _ in range(count)
    ]


def task_of(network=None, **changes):
    """Return a task, and the list that receives what it tells."""
    told = []
    options = {'calibration': inputs(4, 1), 'least_agreement': 0.9, 'tell': told.append}
    return Task(network or Scores(), inputs(2), equal_labels, **options | changes), told


def needs(name):
    for package in ENGINES[name].packages:
        pytest.importorskip(package)


def write_weights(task, folder):
    save_file(task.network.state_dict(), folder / 'weights.safetensors')


def read_weights(task, folder):
    network = Scores()
    network.load_state_dict(load_file(folder / 'weights.safetensors'))
    return TorchEngine(network, Placement(CPU, torch.float32))


def read_nothing(task, folder):
    return TorchEngine(task.network, Placement(CPU, torch.float32))


def negate(task, folder):
    return lambda *inputs: -task.network(*inputs)


def fail(task, folder):
    (folder / 'half').touch()
    raise ZeroDivisionError('no such layer\nand so on')


@pytest.fixture(autouse=True)
def engines(monkeypatch):
    """Add engines that are built at once: a file of weights, a wrong one, one that fails."""
    added = {
        'written': Maker('any', read_weights, write_weights),
        'calibrated': Maker('any', read_weights, write_weights, calibrated=True),
        'wrong': Maker('any', negate, write_weights),
        'failing': Maker('any', read_weights, fail),
    }
    for name, maker in added.items():
        monkeypatch.setitem(ENGINES, name, maker)


@pytest.fixture
def few(monkeypatch):
    """Leave only engines that are built at once, and torch."""
    for name in ON_CPU:
        if not name.startswith('torch'):
            monkeypatch.delitem(ENGINES, name)


def built(told):
    return [line for line in told if 'built in' in line]


@pytest.mark.parametrize('name', QUICK)
def test_each_engine_gives_what_torch_does(name):
    needs(name)
    task, _ = task_of()
    engine = build_engine(name, task, None)
    outputs = [engine(*one) for one in task.inputs]  # none may change with the next call
    error, most = {'float32': (1e-4, 1e-4), 'loat16': (0.03, 0.2), 'nt8': (0.3, 2.5)}[
        name.rpartition('-')[2].removeprefix('bf').removeprefix('i')
    ]
    for output, reference in zip(outputs, task.references, strict=True):
        assert output.dtype == torch.float32
        difference = (output - reference).abs()
        assert difference.mean() < error
        assert difference.max() < most


@pytest.mark.slow
def test_a_compiled_network_gives_what_torch_does():
    task, _ = task_of()
    engine = build_engine('compiled-bfloat16', task, None)
    assert (engine(*task.inputs[0]) - task.references[0]).abs().max() < 0.2


@pytest.mark.gpu
@pytest.mark.parametrize('name', ON_GPU)
def test_each_engine_on_a_gpu_gives_what_torch_does(name, tmp_path):
    needs(name)
    task, _ = task_of(device=torch.device('cuda'))
    engine = build_engine(name, task, Cache(tmp_path))
    assert (engine(*task.inputs[0]).cpu() - task.references[0]).abs().max() < 0.2


def test_a_built_engine_is_taken_from_the_cache(tmp_path):
    for times in (1, 0):
        task, told = task_of()
        build_engine('written', task, Cache(tmp_path))
        assert len(built(told)) == times


@pytest.mark.parametrize('change', ['weights', 'structure', 'size', 'engine'])
def test_another_network_size_or_engine_is_built_of_its_own(tmp_path, change):
    build_engine('written', task_of()[0], Cache(tmp_path))
    network = Scores(seed=1) if change == 'weights' else Scores()
    if change == 'structure':
        network.layers[2] = nn.MaxPool2d(2, ceil_mode=True)  # the same weights
    task, told = task_of(network)
    if change == 'size':
        larger = [(torch.zeros(1, 3, 32, 24),)]
        task = replace(task, inputs=larger, calibration=larger)
    build_engine('calibrated' if change == 'engine' else 'written', task, Cache(tmp_path))
    assert built(told)


def test_what_calibration_scales_is_built_anew_for_other_frames(tmp_path):
    for seed, times in ((1, 1), (1, 0), (2, 1)):
        task, told = task_of(calibration=inputs(4, seed))
        build_engine('calibrated', task, Cache(tmp_path))
        assert len(built(told)) == times


def test_a_damaged_file_in_the_cache_is_built_anew(tmp_path):
    build_engine('written', task_of()[0], Cache(tmp_path))
    (weights,) = tmp_path.glob('*/weights.safetensors')
    weights.write_bytes(weights.read_bytes()[:-4] + b'\0\0\0\1')
    task, told = task_of()
    engine = build_engine('written', task, Cache(tmp_path))
    assert built(told)
    assert task.agreement_of(engine) == 1.0


@pytest.mark.parametrize('foreign', ['other weights', 'no weights'])
def test_a_foreign_engine_in_the_cache_is_told_and_built_anew(tmp_path, foreign):
    cache = Cache(tmp_path)
    build_engine('written', task_of()[0], cache)
    (entry,) = tmp_path.iterdir()

    def place(folder):
        write_weights(task_of(Scores(seed=1))[0], folder)
        if foreign == 'no weights':
            (folder / 'weights.safetensors').write_text('<html></html>', encoding='utf-8')

    cache.make(json.loads((entry / 'record.json').read_text(encoding='utf-8'))['key'], place)
    task, told = task_of()
    engine = build_engine('written', task, cache)
    assert 'built anew' in told[0]
    assert ('fewer than' if foreign == 'other weights' else 'does not run') in told[0]
    assert task.agreement_of(engine) == 1.0


def test_a_damaged_graph_in_the_cache_is_built_anew(tmp_path):
    needs('openvino-float32')
    cache = Cache(tmp_path)
    build_engine('openvino-float32', task_of()[0], cache)
    (entry,) = tmp_path.iterdir()

    def place(folder):
        shutil.copy(entry / 'network.bin', folder)
        (folder / 'network.xml').write_text('<html></html>', encoding='utf-8')

    cache.make(json.loads((entry / 'record.json').read_text(encoding='utf-8'))['key'], place)
    task, told = task_of()
    build_engine('openvino-float32', task, cache)
    assert 'openvino-float32 does not run' in told[0]
    assert len(built(told)) == 1


@pytest.mark.parametrize('package', ['openvino', 'onnxruntime'])
def test_a_missing_engine_is_told_with_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    task, told = task_of()
    with pytest.raises(EngineError, match=f'needs {package}.*: pip install {package}'):
        build_engine(f'{package}-float32', task, None)
    assert told == []


def test_an_engine_for_another_device_is_told():
    with pytest.raises(EngineError, match='runs on a cuda device, not on cpu'):
        choose_engine('tensorrt-float16', task_of()[0], None)


def test_calibration_without_frames_is_told():
    with pytest.raises(EngineError, match='folder of frames for calibration'):
        choose_engine('calibrated', task_of(calibration=())[0], None)


@pytest.mark.parametrize('name', ['openvino-float32', 'onnxruntime-float32'])
def test_a_network_that_cannot_be_exported_is_told(name, tmp_path):
    needs(name)
    with pytest.raises(EngineError, match=f'{name} cannot be built'):
        choose_engine(name, task_of(DependsOnData())[0], Cache(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_fails_is_told_in_one_line(tmp_path):
    with pytest.raises(EngineError) as raised:
        choose_engine('failing', task_of()[0], Cache(tmp_path))
    assert str(raised.value) == 'failing cannot be built: ZeroDivisionError: no such layer'
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_disagrees_with_torch_is_refused():
    with pytest.raises(EngineError, match=r'fewer than 90\.00%'):
        choose_engine('wrong', task_of()[0], None)


def test_a_cache_that_cannot_be_written_costs_only_the_building(tmp_path):
    (tmp_path / 'file').touch()
    task, told = task_of()
    engine = build_engine('written', task, Cache(tmp_path / 'file' / 'cache'))
    assert any('cannot be written' in line for line in told)
    assert task.agreement_of(engine) == 1.0


@pytest.mark.usefixtures('few')
def test_auto_takes_the_fastest_engine_that_agrees_and_remembers_it(tmp_path):
    task, told = task_of()
    choice = choose_engine('auto', task, Cache(tmp_path), seconds=0.05)
    names = [one.engine for one in choice.measured]
    assert choice.name in names
    assert any(line.startswith(f'{choice.name} is the fastest') for line in told)
    assert {'torch-float32', 'written', 'calibrated'} <= set(names)
    assert not {'wrong', 'failing'} & set(names)
    assert any('wrong gives the same' in line for line in told)
    assert any('failing cannot be built' in line for line in told)
    again, told_again = task_of()
    second = choose_engine('auto', again, Cache(tmp_path), seconds=0.05)
    assert (second.name, second.measured, told_again) == (choice.name, choice.measured, [])


@pytest.mark.usefixtures('few')
@pytest.mark.parametrize('change', ['engine gone', 'threshold', 'damaged', '[1]', '{}', 'empty'])
def test_auto_measures_anew_where_its_choice_does_not_hold(tmp_path, monkeypatch, change):
    cache = Cache(tmp_path)
    choose_engine('auto', task_of()[0], cache, seconds=0.05)
    (file,) = tmp_path.glob('auto-*/choice.json')
    task, told = task_of()
    if change == 'engine gone':
        monkeypatch.delitem(ENGINES, 'written')
    elif change == 'threshold':
        task = replace(task, least_agreement=0.95)
    elif change == 'damaged':
        file.write_text('{"engine": "torch-float32"}', encoding='utf-8')
    else:
        record = (file.parent / 'record.json').read_text(encoding='utf-8')
        text = '{"engine": "torch-float32", "measured": []}' if change == 'empty' else change
        cache.make(
            json.loads(record)['key'], lambda folder: (folder / 'choice.json').write_text(text)
        )
    choose_engine('auto', task, cache, seconds=0.05)
    assert any('is the fastest' in line for line in told)


def half_right(task, folder):
    def run(*inputs):
        scores = task.network(*inputs)
        scores[..., ::2] *= -1  # another best class in every second column
        return scores

    return run


@pytest.mark.parametrize('cached', [False, True])
def test_an_engine_by_name_comes_with_its_agreement(monkeypatch, tmp_path, cached):
    monkeypatch.setitem(ENGINES, 'half', Maker('any', half_right, write_weights))
    for _ in range(1 + cached):
        task, told = task_of(least_agreement=0.4)
        choice = choose_engine('half', task, Cache(tmp_path))
    assert choice.agreement == pytest.approx(0.5)
    assert str(choice) == '50.00% as torch float32'
    assert len(built(told)) == 1 - cached


@pytest.mark.usefixtures('few')
def test_what_auto_remembers_comes_with_its_agreement_and_speed(tmp_path):
    for _ in range(2):
        task, told = task_of()
        choice = choose_engine('auto', task, Cache(tmp_path), seconds=0.05)
    assert told == []
    (own,) = [one for one in choice.measured if one.engine == choice.name]
    assert choice.agreement == task.agreement_of(choice.engine)
    assert str(choice) == f'{choice.agreement:.2%} as torch float32, {own.speed:.2f} x its speed'


@pytest.mark.usefixtures('few')
def test_auto_tells_what_it_measures_and_how_many_there_are_before_each():
    task, told = task_of()
    choose_engine('auto', task, None, seconds=0.01)
    lines = [line for line in told if line.startswith('measuring')]
    names = [name for name in ENGINES if name in ' '.join(lines)]
    assert {'torch-float32', 'written', 'failing'} <= set(names)
    assert lines == [f'measuring {at} of {len(names)}: {name}' for at, name in enumerate(names, 1)]
    failed = next(line for line in told if 'failing cannot be built' in line)
    assert told.index(lines[names.index('failing')]) < told.index(failed)


def test_what_takes_long_without_a_file_is_told_before_it_begins(monkeypatch):
    task, told = task_of()
    before = []

    def load(task, folder):
        before.extend(told)
        return read_nothing(task, folder)

    monkeypatch.setitem(ENGINES, 'slow', Maker('any', load, preparing='compiling'))
    build_engine('slow', task, None)
    assert before == ['slow: compiling for ((1, 3, 16, 24),), which may take minutes']


@pytest.mark.parametrize('name', ['compiled-bfloat16', 'compiled-float16', 'graph-float16'])
def test_what_torch_compiles_or_records_counts_as_long(name):
    assert ENGINES[name].preparing


@pytest.mark.usefixtures('few')
def test_auto_without_any_engine_runs_in_torch(monkeypatch):
    for name in ('written', 'calibrated', 'wrong', 'failing'):
        monkeypatch.delitem(ENGINES, name)
    choice = choose_engine('auto', task_of()[0], None, seconds=0.05)
    assert choice.name in ('torch-float32', 'torch-bfloat16')


def test_an_unknown_engine_is_refused():
    with pytest.raises(SettingError, match='must be one of auto, torch-float32'):
        choose_engine('openvino', task_of()[0], None)


def test_inputs_of_several_sizes_are_refused():
    with pytest.raises(InputError, match='inputs of one size'):
        task_of(calibration=[(torch.zeros(1, 3, 8, 8),)])


def test_equal_labels_are_counted():
    scores = torch.tensor([[3.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]]).view(1, 2, 1, 4)
    assert equal_labels(scores, scores.flip(1)) == 0.0
    assert equal_labels(scores, torch.zeros_like(scores)) == 0.25


def test_flow_is_close_within_a_tenth_of_a_pixel_and_a_twentieth_of_its_length():
    flow = torch.zeros(1, 2, 1, 4)
    flow[0, 0, 0] = torch.tensor([0.0, 0.0, 20.0, 20.0])
    other = flow.clone()
    other[0, 0, 0] += torch.tensor([0.09, 0.11, 1.05, 1.15])  # pixels
    assert close_flow(other / 20, flow / 20) == 0.5


def test_calls_are_timed_in_turns():
    turns = []
    times = time_in_turns(
        {name: lambda turn, name=name: turns.append((name, turn)) for name in 'ab'}, CPU, seconds=0
    )
    assert turns[:6] == [('a', 0), ('b', 0), ('a', 0), ('b', 0), ('a', 1), ('b', 1)]
    assert len(times['a']) == len(times['b']) == 3


@pytest.mark.usefixtures('few')
def test_auto_leaves_a_slow_engine_for_a_fast_one(monkeypatch):
    def idle(task, folder):
        engine = TorchEngine(task.network, Placement(CPU, torch.float32))

        def run(*values):
            time.sleep(0.02)
            return engine(*values)

        return run

    for name in ('torch-bfloat16', 'written', 'calibrated', 'wrong', 'failing'):
        monkeypatch.delitem(ENGINES, name)
    monkeypatch.setitem(ENGINES, 'torch-float32', Maker('any', idle))
    monkeypatch.setitem(ENGINES, 'as slow', Maker('any', idle))
    monkeypatch.setitem(ENGINES, 'written', Maker('any', read_weights, write_weights))
    choice = choose_engine('auto', task_of()[0], None, seconds=0.05)
    assert choice.name == 'written'
    assert max(choice.measured, key=lambda one: one.speed).engine == 'written'
    assert [one.engine for one in choice.measured] == ['torch-float32', 'as slow', 'written']
