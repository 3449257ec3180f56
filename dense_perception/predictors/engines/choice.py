"""Which engine a network runs in: by name, or the fastest that was measured here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
import hashlib
from importlib.util import find_spec
import json
import os
from pathlib import Path
import statistics
import tempfile
import time

from dense_perception.errors import SettingError
from dense_perception.predictors.device import choose_placement
from dense_perception.predictors.engines import (
    in_onnx_runtime,
    in_openvino,
    in_tensorrt,
    in_torch,
)
from dense_perception.predictors.engines.cache import Cache
from dense_perception.predictors.engines.engine import Engine, EngineError, Maker, Task
from dense_perception.predictors.engines.machine import device_name, version_of
from dense_perception.predictors.engines.telling import telling
import torch

_FORMAT = 2  # raised when what is written changes
_CHOICE = 'choice.json'
_BASELINE = 'torch-float32'

AUTO = 'auto'
ENGINES: dict[str, Maker] = {
    _BASELINE: Maker('any', partial(in_torch.load_torch, dtype=torch.float32)),
    'torch-bfloat16': Maker('any', partial(in_torch.load_torch, dtype=torch.bfloat16)),
    'torch-float16': Maker('cuda', partial(in_torch.load_torch, dtype=torch.float16)),
    'compiled-bfloat16': Maker(
        'any', partial(in_torch.load_compiled, dtype=torch.bfloat16), preparing='compiling'
    ),
    'compiled-float16': Maker(
        'cuda', partial(in_torch.load_compiled, dtype=torch.float16), preparing='compiling'
    ),
    'graph-float16': Maker(
        'cuda',
        partial(in_torch.load_graph, dtype=torch.float16),
        preparing='choosing and recording kernels',
    ),
    'onnxruntime-float32': Maker(
        'cpu', in_onnx_runtime.load, in_onnx_runtime.build, ('onnxruntime', 'onnx', 'onnxscript')
    ),
    'openvino-float32': Maker(
        'cpu', partial(in_openvino.load, precision='f32'), in_openvino.build, ('openvino',)
    ),
    'openvino-bfloat16': Maker(
        'cpu', partial(in_openvino.load, precision='bf16'), in_openvino.build, ('openvino',)
    ),
    'openvino-int8': Maker(
        'cpu',
        partial(in_openvino.load, precision='bf16'),
        in_openvino.build_int8,
        ('openvino', 'nncf'),
        calibrated=True,
    ),
    'tensorrt-float16': Maker(
        'cuda', in_tensorrt.load, in_tensorrt.build, ('tensorrt', 'onnx', 'onnxscript')
    ),
}


@dataclass(frozen=True)
class Measured:
    """What one engine did on a task."""

    engine: str
    agreement: float  # with torch in float32, 0 to 1
    speed: float  # times that of torch in float32, both timed in turns

    def __str__(self) -> str:
        return f'{self.engine}: {_in_words(self.agreement, self.speed)}'


@dataclass(frozen=True)
class Choice:
    """An engine that is ready to run."""

    name: str
    engine: Engine
    agreement: float  # with torch in float32 on the inputs of the task, 0 to 1
    measured: tuple[Measured, ...] = ()  # by `auto`, now or when the choice was kept

    def __str__(self) -> str:
        speeds = [one.speed for one in self.measured if one.engine == self.name]
        return _in_words(self.agreement, *speeds)


def _in_words(agreement: float, *speed: float) -> str:
    """Say how an engine does beside torch; how fast it is only where that was measured."""
    return ', '.join(
        [f'{agreement:.2%} as torch float32', *(f'{one:.2f} x its speed' for one in speed)]
    )


def choose_engine(name: str, task: Task, cache: Cache | None, *, seconds: float = 2.0) -> Choice:
    """
    Build an engine.

    :param name: a name in `ENGINES`, or `auto` for the fastest whose outputs agree; it passes over
        what cannot be had.
    :param cache: where built engines and the choice are kept; None: nowhere.
    :param seconds: how long each candidate of `auto` is timed.
    :raises SettingError: no such engine.
    :raises EngineError: as `build_engine`.
    """
    if name == AUTO:
        return _fastest(task, cache, seconds)
    if name not in ENGINES:
        known = ', '.join((AUTO, *ENGINES))
        raise SettingError(f'engine is {name!r}; it must be one of {known}')
    return _ready(name, task, cache)


def build_engine(name: str, task: Task, cache: Cache | None) -> Engine:
    """
    Build an engine or take it from the cache, and check what it gives.

    :param name: a name in `ENGINES`.
    :raises EngineError: it is not installed, cannot be built, or disagrees with torch.
    """
    return _ready(name, task, cache).engine


def _ready(name: str, task: Task, cache: Cache | None) -> Choice:
    """Do what `build_engine` says, and return how far the engine agrees as well."""
    maker = ENGINES[name]
    _check(name, maker, task)
    with telling(task.tell, name):
        return _made(name, maker, task, cache)


def _made(name: str, maker: Maker, task: Task, cache: Cache | None) -> Choice:
    """Build an engine, or take it from the cache."""
    if maker.build is None:
        if maker.preparing:
            task.tell(f'{name}: {maker.preparing} for {task.sizes}, which may take minutes')
        return _loaded(name, maker, task, Path())
    key = _key(name, maker, task)
    kept = cache.find(key) if cache else None
    if kept:
        try:
            return _loaded(name, maker, task, kept)
        except EngineError as error:
            task.tell(f'{error}; it is built anew')
    task.tell(f'{name}: building for {task.sizes}, which may take minutes')
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix='engine-') as unkept:
        folder = _built(name, partial(maker.build, task), key, cache, Path(unkept), task.tell)
        choice = _loaded(name, maker, task, folder)
    task.tell(f'{name}: built in {time.perf_counter() - start:.1f} s')
    return choice


def _check(name: str, maker: Maker, task: Task) -> None:
    """
    Refuse an engine before anything is built.

    :raises EngineError: another device, a missing package, or no frames for calibration.
    """
    if maker.device not in ('any', task.device.type):
        raise EngineError(f'{name} runs on a {maker.device} device, not on {task.device}')
    missing = [package for package in maker.packages if find_spec(package) is None]
    if missing:
        raise EngineError(f'{name} needs {", ".join(missing)}: pip install {" ".join(missing)}')
    if maker.calibrated and not task.calibration:
        raise EngineError(f'{name} needs a folder of frames for calibration')


def _built(
    name: str,
    build: Callable[[Path], None],
    key: Mapping[str, object],
    cache: Cache | None,
    unkept: Path,
    tell: Callable[[str], None],
) -> Path:
    """Return the folder that `build` wrote: in the cache, or `unkept` where there is none."""
    try:
        if cache:
            try:
                cache.folder.mkdir(parents=True, exist_ok=True)
                writable = os.access(cache.folder, os.W_OK)
            except OSError:
                writable = False
            if writable:
                return cache.make(key, build)
            tell(f'{cache.folder} cannot be written; {name} is built again at the next start')
        build(unkept)
    except Exception as error:  # each library has exceptions of its own
        raise EngineError(f'{name} cannot be built: {first_line(error)}') from error
    return unkept


def _loaded(name: str, maker: Maker, task: Task, folder: Path) -> Choice:
    """
    Return a built engine that gives what torch does.

    :raises EngineError: it does not run, or disagrees.
    """
    try:
        engine = maker.load(task, folder)
        agreement = task.agreement_of(engine)
    except Exception as error:  # each library has exceptions of its own
        raise EngineError(f'{name} does not run: {first_line(error)}') from error
    if not agreement >= task.least_agreement:
        raise EngineError(
            f'{name} gives the same as torch float32 in {agreement:.2%} of places, '
            f'fewer than {task.least_agreement:.2%}'
        )
    return Choice(name, engine, agreement)


def first_line(error: Exception) -> str:
    """Return an error's type and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0][:300]}' if lines else type(error).__name__


def _fastest(task: Task, cache: Cache | None, seconds: float) -> Choice:
    """Take the kept choice, or measure every engine that can be had."""
    candidates = _candidates(task)
    key = _key(AUTO, None, task, candidates=candidates, least_agreement=task.least_agreement)
    kept = _kept_choice(cache.find(key) if cache else None, candidates)
    if kept:
        name, measured = kept
        try:
            return replace(_ready(name, task, cache), measured=measured)
        except EngineError as error:
            task.tell(f'{error}; engines are measured anew')
    choice = _measure(candidates, task, cache, seconds)
    table = [vars(one) for one in choice.measured]
    text = json.dumps({'engine': choice.name, 'measured': table}, indent=1)
    with tempfile.TemporaryDirectory(prefix='engine-') as unkept:
        _built(AUTO, lambda folder: _write(folder, text), key, cache, Path(unkept), task.tell)
    return choice


def _write(folder: Path, text: str) -> None:
    (folder / _CHOICE).write_text(text, encoding='utf-8')


def _kept_choice(
    folder: Path | None, candidates: list[str]
) -> tuple[str, tuple[Measured, ...]] | None:
    """Return the name of the engine that was kept, and what was measured for it."""
    if folder is None:
        return None
    try:
        content = json.loads((folder / _CHOICE).read_text(encoding='utf-8'))
        name = content['engine']
        measured = tuple(
            Measured(str(row['engine']), float(row['agreement']), float(row['speed']))
            for row in content['measured']
        )
    except (OSError, ValueError, KeyError, TypeError):  # the last two: of another form
        return None
    known = name in candidates and name in [one.engine for one in measured]
    return (name, measured) if known else None


def _candidates(task: Task) -> list[str]:
    """Return the engines that this machine can have, torch in float32 first."""
    names = [_BASELINE]
    for name, maker in ENGINES.items():
        if name.endswith('bfloat16') and not _computes_bfloat16(task.device):
            continue  # emulated, slower than float32
        try:
            _check(name, maker, task)
        except EngineError:
            continue
        names += [name] if name != _BASELINE else []
    return names


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return choose_placement('cpu').dtype == torch.bfloat16


def _measure(candidates: list[str], task: Task, cache: Cache | None, seconds: float) -> Choice:
    """
    Time each engine in turns with torch in float32 and with the fastest so far.

    Side by side, whatever else the machine does hits all alike; the others leave the memory.
    """
    task.tell(f'measuring 1 of {len(candidates)}: {_BASELINE}')
    best = baseline = _ready(_BASELINE, task, cache)
    measured = [Measured(_BASELINE, baseline.agreement, 1.0)]
    for at, name in enumerate(candidates[1:], 2):
        task.tell(f'measuring {at} of {len(candidates)}: {name}')
        try:
            choice = _ready(name, task, cache)
        except EngineError as error:
            task.tell(str(error))
            continue
        rivals = {one.name: one.engine for one in (baseline, best, choice)}
        calls = {key: _call(one, task) for key, one in rivals.items()}
        times = {
            key: statistics.median(values)
            for key, values in time_in_turns(calls, task.device, seconds=seconds).items()
        }
        speed = times[_BASELINE] / times[name]
        measured.append(Measured(name, choice.agreement, speed))
        task.tell(str(measured[-1]))
        if times[name] < times[best.name]:
            best = choice
    task.tell(f'{best.name} is the fastest of {len(measured)} engines')
    return replace(best, measured=tuple(measured))


def _call(engine: Engine, task: Task) -> Callable[[int], object]:
    """Return what runs an engine on the task's inputs in turn."""
    return lambda turn: engine(*task.inputs[turn % len(task.inputs)])


def time_in_turns(
    calls: Mapping[str, Callable[[int], object]], device: torch.device, *, seconds: float = 2.0
) -> dict[str, list[float]]:
    """
    Return the seconds of each call, made one after the other in rounds, after one to warm up.

    Rounds spread whatever else the machine does evenly; their ratios mean more than the times.

    :param calls: each takes the number of the round, from 0 on.
    :param seconds: how long to go on; three rounds at least.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call(0)
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 3 or time.perf_counter() < end:
        for name, call in calls.items():
            _synchronise(device)
            start = time.perf_counter()
            call(rounds)
            _synchronise(device)
            times[name].append(time.perf_counter() - start)
        rounds += 1
    return times


def _synchronise(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _key(name: str, maker: Maker | None, task: Task, **more: object) -> dict[str, object]:
    """Return all that decides what is built, in JSON values."""
    packages = (
        maker.packages if maker else sorted({p for m in ENGINES.values() for p in m.packages})
    )
    needs_frames = maker is None or maker.calibrated
    key = {
        'format': _FORMAT,
        'engine': name,
        'network': task.fingerprint,
        'sizes': [list(size) for size in task.sizes],
        'device': device_name(task.device),
        'versions': {package: version_of(package) for package in ('torch', *packages)},
        'calibration': _hash_of(task) if needs_frames else '',
        **more,
    }
    return dict(json.loads(json.dumps(key)))


def _hash_of(task: Task) -> str:
    digest = hashlib.sha256()
    for inputs in task.calibration:
        for value in inputs:
            digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()
