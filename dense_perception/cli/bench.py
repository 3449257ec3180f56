"""
Time every stage from a camera's message to labels and flow on this machine, as one table.

Stages, engines for both networks, and OpenCV are timed in turns, so that their ratios
hold on a busy machine; for times, leave it alone. A p99 stands where there are 20 calls and more.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
import csv
from dataclasses import dataclass
import os
from pathlib import Path
import sys
import tempfile

# Read when torch is imported, and as the node has it: threads of one library that wait by spinning
# would take the cores from the next one's.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import cv2
from dense_perception.arrays import Image
from dense_perception.errors import DensePerceptionError, SettingError
from dense_perception.evaluation.engine_rates import (
    Rivals,
    SUBJECTS,
    time_networks,
    usual_engines,
)
from dense_perception.evaluation.result_files import machine, table_path
from dense_perception.evaluation.stages import (
    Calls,
    FLOW,
    Group,
    ImageSize,
    Row,
    scaling_frames,
    stream,
    time_flow,
    time_stages,
)
from dense_perception.evaluation.timing import LEAST_CALLS, LEAST_S, MOST_S
from dense_perception.memory import keep_memory
from dense_perception.predictors.device import choose_placement, Placement
from dense_perception.predictors.engines.calibration import calibration_runs, check_calibration
from dense_perception.predictors.engines.choice import ENGINES
from dense_perception.predictors.engines.settings import EngineSettings
import torch

SIZES = ('480x360', '1024x512')
NO_ENGINES = 'none'
_MOST_S = 3600.0
_COMPARED = 2  # frames that an engine labels; each takes up to a second
_JUDGING = 4  # images of the user's, held back from scaling int8
_WHAT_WIDTH = 42
_PUBLISHED = 'serialise is what the node does of publishing, up to the bytes that DDS takes'
_UNSHOWN = ('input', 'group', 'process MiB')  # the same in a whole group


@dataclass(frozen=True)
class _Plan:
    """What is timed, and where it goes."""

    sizes: Sequence[ImageSize]
    placement: Placement
    engines: Sequence[str]
    calibration: EngineSettings
    seconds: float | None  # None: as long as `LEAST_CALLS` calls take
    out: Path
    title: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        _run(_plan(options))
    except DensePerceptionError as error:
        print(f'bench: {error}', file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='bench', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--size',
        action='append',
        metavar='WxH',
        help=f'of the images; may be given again (default: {" and ".join(SIZES)})',
    )
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda, ... (%(default)s)')
    parser.add_argument(
        '--seconds',
        type=float,
        help='for which each of four groups of each size is timed (default: until each call was '
        f'made {LEAST_CALLS} times, {LEAST_S:.0f} s at least and about {MOST_S:.0f} s at most)',
    )
    parser.add_argument(
        '--engines',
        nargs='+',
        metavar='NAME',
        help=f'{NO_ENGINES}, or some of {", ".join(ENGINES)} (default: all for the device)',
    )
    parser.add_argument(
        '--calibration',
        default='',
        metavar='PATH',
        help='folder of pictures, video or bag of your camera that scales int8 (default: rendered '
        'pictures)',
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='FILE.csv',
        help='default: bench_DEVICE_torchVERSION.csv in this folder',
    )
    return parser


def _plan(options: argparse.Namespace) -> _Plan:
    """
    Check everything before minutes are spent.

    :raises DensePerceptionError: something is not to be had; the message says what would be.
    """
    sizes = dict.fromkeys(ImageSize.parse(text) for text in options.size or SIZES)
    if options.seconds is not None and not 0 < options.seconds <= _MOST_S:
        raise SettingError(f'seconds is {options.seconds}; it must be above 0, {_MOST_S} at most')
    placement = choose_placement(options.device)
    with suppress(ImportError):  # without ROS a bag of calibration frames is refused
        from dense_perception.ros.calibration_bags import read_calibration_bags

        read_calibration_bags()
    calibration = EngineSettings(engine_cache='', calibration_frames=options.calibration)
    check_calibration(calibration, frames=1)
    out: Path = options.out or table_path('bench', placement.device, Path())
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise SettingError(f'out is {out}; it must be a file in a folder that can be written')
    return _Plan(
        list(sizes),
        placement,
        _engines(options.engines, placement.device),
        calibration,
        options.seconds,
        out,
        machine(placement.device),
    )


def _engines(names: Sequence[str] | None, device: torch.device) -> Sequence[str]:
    if names is None:
        return usual_engines(device)
    if list(names) == [NO_ENGINES]:
        return ()
    for name in names:
        if name not in ENGINES:
            known = ', '.join(ENGINES)
            raise SettingError(
                f'engine is {name!r}; it must be some of {known}, or {NO_ENGINES} alone'
            )
    return list(dict.fromkeys(names))


def _run(plan: _Plan) -> None:
    """Time and print size after size, then write all."""
    keep_memory()  # as the node does
    cv2.setNumThreads(torch.get_num_threads())  # it would take all cores, whatever torch may have
    print(plan.title)
    messages = _messages()
    table: list[dict[str, str]] = []
    for size in plan.sizes:
        for group in _groups(plan, size, messages):
            table += _show(size, group)
    print(f'peak memory of this process {table[-1]["process MiB"]} MiB')
    _write(plan, table)
    print(f'{plan.out} is written')


def _write(plan: _Plan, table: Sequence[Mapping[str, str]]) -> None:
    try:
        with plan.out.open('w', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, [*table[0], 'device'])
            writer.writeheader()
            writer.writerows({**row, 'device': plan.title} for row in table)
    except OSError as error:
        raise SettingError(f'{plan.out} cannot be written: {error.strerror}') from error


def _messages() -> Callable[[Image], tuple[Calls, Calls]]:
    """Return what makes the calls before and behind the networks; none without ROS 2."""
    try:
        from dense_perception.ros.message_stages import incoming, outgoing
    except ImportError as error:
        print(f'no ROS 2 here, so messages are not timed: {error}')
        return lambda image: ({}, {})
    return lambda image: (incoming(image), outgoing(image))


def _groups(
    plan: _Plan, size: ImageSize, messages: Callable[[Image], tuple[Calls, Calls]]
) -> Iterator[Group]:
    frames = stream(size)
    before, behind = messages(frames[0])
    placement, seconds = plan.placement, plan.seconds
    yield time_stages(frames, placement, seconds=seconds, incoming=before, outgoing=behind)
    scaling, judging = _calibration(plan, size)
    compared = [*frames[:_COMPARED], *judging]
    # Engines for flow are those that `auto` has without a folder to scale int8 by.
    unscaled = [name for name in plan.engines if not ENGINES[name].calibrated]
    for images, rivals in (
        (compared, Rivals(plan.engines, scaling)),
        (frames[: _COMPARED + 1], Rivals(unscaled, subject=SUBJECTS[FLOW])),
    ):
        with tempfile.TemporaryDirectory(prefix='bench-') as folder:
            yield time_networks(images, placement.device, rivals, Path(folder), seconds=seconds)
    yield time_flow(frames, placement, seconds=seconds)


def _calibration(plan: _Plan, size: ImageSize) -> tuple[list[Image], list[Image]]:
    """Return images that scale int8, if that is wanted, and more to judge engines by."""
    if not any(ENGINES[name].calibrated for name in plan.engines):
        return [], []
    if not plan.calibration.calibration_frames:
        return scaling_frames(size), []
    scaling, judging = calibration_runs(plan.calibration, (size.height, size.width), 1)
    return [run[0] for run in scaling], [run[0] for run in judging[:_JUDGING]]


def _show(size: ImageSize, group: Group) -> list[dict[str, str]]:
    """Print the rows of a group and return them as they are written."""
    table = [_cells(size, group, row) for row in group.rows]
    shown = [name for name in table[0] if name not in _UNSHOWN and any(row[name] for row in table)]
    published = any(row.what.startswith('serialise') for row in group.rows)
    print(f'\n{size}, {group.name}{f"; {_PUBLISHED}" if published else ""}')
    for cells in ({name: name for name in shown}, *table):
        print(
            ''.join(
                f'{cells[name]:<{_WHAT_WIDTH}}' if name == 'what' else f'{cells[name]:>12}'
                for name in shown
            ),
            flush=True,
        )
    return table


def _cells(size: ImageSize, group: Group, row: Row) -> dict[str, str]:
    timing = row.timing
    return {
        'input': str(size),
        'group': group.name,
        'what': row.what,
        'p50 ms': f'{timing.p50_ms:.3f}',
        'p99 ms': _text(timing.p99_ms if timing.calls >= LEAST_CALLS else None, '.3f'),
        'calls': str(timing.calls),
        'per s': f'{timing.rate_hz:.1f}',
        'GMAC/s': _text(row.gigamacs_per_s, '.3f'),
        'of product': _text(row.share, '.3f'),
        'x plain': _text(row.speed, '.2f'),
        'equal': _text(row.agreement, '.4f'),
        'device MiB': _text(row.device_mib, '.0f'),
        'process MiB': f'{group.process_mib:.0f}',
    }


def _text(value: float | None, form: str) -> str:
    return '' if value is None else format(value, form)


if __name__ == '__main__':
    sys.exit(main())
