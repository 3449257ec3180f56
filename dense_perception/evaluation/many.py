"""
Many recordings, one after another or spread over a Ray cluster.

Every recording has its own result file, so that an interrupted run goes on where it was, and the
reports merge to that of all recordings exactly, whoever made them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
import hashlib
import json
from pathlib import Path, PurePosixPath
import re
import socket
from tempfile import TemporaryDirectory
from typing import Any

from dense_perception.errors import DensePerceptionError, InputError, SettingError
from dense_perception.evaluation.report import merge, Report
from dense_perception.evaluation.report_json import (
    from_json,
    read_report,
    report_text,
    write_report,
)
from dense_perception.evaluation.report_records import Problem
import fsspec  # type: ignore[import-untyped]
import torch

Work = Callable[[str], Report]  # from the name of a recording; can be pickled for Ray
_SUFFIXES = ('.mcap', '.db3')
_CONNECT_S = 10.0
_RETRIES = 3  # of a recording whose worker was lost
LOCAL = 'local'  # a cluster of this machine's cores, for the time of the run


def find_bags(pattern: str) -> list[str]:
    """
    Find recordings below a folder or by a pattern, here or at any URL that fsspec knows.

    A folder with `metadata.yaml` is one recording, and so is a file that lies in no such folder.

    :returns: paths or URLs, sorted.
    :raises InputError: there is none, or the place cannot be reached.
    """
    try:
        files, root = fsspec.url_to_fs(pattern)
        places = files.glob(root) if any(sign in root for sign in '*?[') else [root]
        found = [str(file) for place in places for file in _files(files, str(place))]
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f'{pattern}: cannot be reached: {error}') from error
    folders = {str(PurePosixPath(file).parent) for file in found if _is_metadata(file)}
    bags = folders | {
        file
        for file in found
        if file.endswith(_SUFFIXES) and str(PurePosixPath(file).parent) not in folders
    }
    if not bags:
        raise InputError(f'{pattern}: no bag there: no metadata.yaml, *.mcap or *.db3')
    return sorted(bag if '://' not in pattern else files.unstrip_protocol(bag) for bag in bags)


def _files(files: Any, place: str) -> list[str]:
    return files.find(place) if files.isdir(place) else [place]


def _is_metadata(file: str) -> bool:
    return PurePosixPath(file).name == 'metadata.yaml'


@contextmanager
def local_copy(name: str) -> Iterator[Path]:
    """
    Give a recording as a path on this machine, for as long as it is used.

    :param name: path, or URL that fsspec knows.
    :raises InputError: it cannot be fetched.
    """
    if '://' not in name:
        yield Path(name)
        return
    with TemporaryDirectory(prefix='dense_perception_') as folder:
        copy = Path(folder) / PurePosixPath(name.rstrip('/')).name
        try:
            files, path = fsspec.url_to_fs(name)
            files.get(path, str(copy), recursive=files.isdir(path))
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f'{name}: cannot be fetched: {error}') from error
        yield copy


def evaluate_many(
    names: Sequence[str],
    work: Work,
    folder: Path,
    *,
    key: str,
    ray: str = '',
    told: Callable[[str], None] = lambda line: None,
) -> Report:
    """
    Evaluate recordings and merge their reports.

    A recording that cannot be evaluated is told in the report and does not stop the others.

    :param names: of the recordings, each once.
    :param folder: for a result file of each; those of an earlier run with this key are taken over
        where the recording is the same.
    :param key: changes whenever results would, with weights and settings.
    :param ray: address of a cluster, or `local`; empty for this process alone.
    :param told: is given a line for each recording.
    :raises SettingError: Ray is asked for and not installed, or the cluster is not reached.
    :raises InputError: a result cannot be written.
    """
    files = {name: folder / _file_name(name, key) for name in names}
    reports: dict[str, Report] = {}
    for name, file in files.items():
        if file.is_file():
            reports[name] = read_report(file)
            told(f'{name}: taken over from {file}')
    rest = [name for name in names if name not in reports]
    results = _on_ray(rest, work, ray) if ray and rest else _here(rest, work)
    for name, outcome in results:
        if isinstance(outcome, str):
            reports[name] = Report(problems=(Problem(name, '', outcome),))
            told(f'{name}: not evaluated: {outcome}')
            continue
        write_report(outcome, files[name])
        reports[name] = outcome
        told(f'{name}: {sum(source.frames for source in outcome.sources)} frames')
    return merge(reports[name] for name in names)


def _here(names: Sequence[str], work: Work) -> Iterator[tuple[str, Report | str]]:
    for name in names:
        yield name, _outcome(work, name)


def _outcome(work: Work, name: str) -> Report | str:
    """Return the report of a recording, or why there is none."""
    try:
        return work(name)
    except DensePerceptionError as error:
        return str(error)
    # Whatever a recording brings, the next one is evaluated: out of GPU memory, for example.
    except Exception as error:  # noqa: BLE001
        return f'{type(error).__name__}: {error}'


def _remote(work: Work, name: str, threads: int) -> tuple[str, str]:
    """Do the work in a worker; returns the text of the result file, or what went wrong."""
    # Ray gives a worker one thread: sums would be rounded otherwise than without Ray.
    torch.set_num_threads(threads)
    outcome = _outcome(work, name)
    return ('', outcome) if isinstance(outcome, str) else (report_text(outcome), '')


def _on_ray(names: Sequence[str], work: Work, address: str) -> Iterator[tuple[str, Report | str]]:
    """Yield outcomes as they come; Ray starts the work of a lost worker again."""
    try:
        import ray
    except ImportError as error:
        raise SettingError('Ray is not installed: pip install ray') from error
    try:
        _check_reachable(address)
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        raise SettingError(f'no Ray cluster at {address!r}: {error}') from error
    try:
        remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(_remote)
        shared = ray.put(work)
        threads = torch.get_num_threads()
        running = {remote.remote(shared, name, threads): name for name in names}
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            name = running.pop(done)
            try:
                text, error_text = ray.get(done)
            except ray.exceptions.WorkerCrashedError as error:
                yield name, f'its worker was lost, and {_RETRIES} more after it: {error}'
                continue
            except ray.exceptions.RayError as error:
                yield name, f'not evaluated by its worker: {error}'
                continue
            yield name, from_json(json.loads(text)) if text else error_text
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """
    Connect once, as Ray itself tries for minutes.

    :raises OSError: nothing answers at HOST:PORT; other kinds of addresses are left to Ray.
    """
    found = re.fullmatch(r'([^:/]+):(\d+)', address)
    if found:
        socket.create_connection((found[1], int(found[2])), timeout=_CONNECT_S).close()


def _file_name(name: str, key: str) -> str:
    """Return the name of a result file: it tells recording, its state and the key."""
    return f'{_short_name(name, key, *_state(name))}.json'


def own_name(name: str) -> str:
    """
    Return a name for what is made of a recording, such as `drive-1f0c44a7d2b96e03`.

    Recordings of one name in different folders have different ones; a recording has always the
    same, whether it is named from here or from the root.

    :param name: path, or URL that fsspec knows.
    :raises InputError: it is no name of a file or folder.
    """
    place = name if '://' in name else str(Path(name).resolve())
    if not PurePosixPath(place.rstrip('/')).stem:
        raise InputError(f'{name!r} is no name of a bag')
    return _short_name(place)


def _short_name(name: str, *content: str) -> str:
    digest = hashlib.sha256('\n'.join([name, *content]).encode()).hexdigest()
    return f'{PurePosixPath(name.rstrip("/")).stem}-{digest[:16]}'


def _state(name: str) -> list[str]:
    """Describe the files of a recording so that a change is noticed; nothing if they are gone."""
    try:
        files, path = fsspec.url_to_fs(name)
        return [str(files.ukey(file)) for file in sorted(_files(files, path))]
    except (OSError, ValueError, ImportError):
        return []
