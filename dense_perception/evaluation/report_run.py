"""What to know of a run in order to repeat it."""

from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
import os
from pathlib import Path
import platform
import shlex
import subprocess
import time

from dense_perception.evaluation.report_records import RunRecord
import torch

_PACKAGES = (
    'dense_perception',
    'torch',
    'numpy',
    'opencv-python',
    'scipy',
    'onnxruntime',
    'openvino',
    'nncf',
    'ray',
)


class RunClock:
    """Remembers when a run began."""

    def __init__(self) -> None:
        self._started = datetime.now(timezone.utc)
        self._start_s = time.monotonic()

    def describe(self, command: Sequence[str], placement: str) -> RunRecord:
        """
        Return the record of the run that ends now.

        :param command: the words of the command, such as `['evaluate', ...]`.
        :param placement: device and number type of the networks, and their engines.
        """
        return RunRecord(
            shlex.join(command),
            _commit(),
            placement,
            _machine(),
            _versions(),
            self._started.isoformat(timespec='seconds'),
            round(time.monotonic() - self._start_s, 3),
        )


def _commit() -> str:
    """
    Return the commit of the checkout that holds this package, `-dirty` where it was changed.

    Empty where the package is installed: a checkout around it would be another project's.
    """
    file = Path(__file__).resolve()
    git = ['git', '-C', str(file.parent)]
    describe = ['describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        for arguments in (['ls-files', '--error-unmatch', file.name], describe):
            done = subprocess.run(
                [*git, *arguments], capture_output=True, text=True, check=True, timeout=30
            )
    except (OSError, subprocess.SubprocessError):
        return ''
    return done.stdout.strip()


def _machine() -> dict[str, str]:
    found = {
        'system': platform.platform(),
        'processor': processor(),
        'cores': str(len(os.sched_getaffinity(0))),
        'memory': f'{os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30:.1f} GiB',
    }
    if torch.cuda.is_available():
        found['GPU'] = torch.cuda.get_device_name()
    return found


def processor() -> str:
    """Return the name of the machine's processor."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
    except OSError:
        lines = []
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def _versions() -> dict[str, str]:
    found = {'python': platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
