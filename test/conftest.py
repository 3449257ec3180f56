"""Fixtures for tests that start real ROS 2 nodes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
import os
from pathlib import Path
import random
import shutil
import signal
import socket
import subprocess
import time

import pytest

PROFILE = Path(__file__).parent.parent / 'config' / 'fastdds_large_images.xml'
DOMAINS = range(1, 102)  # above 101, ports meet those that Linux hands out
STOP_S = 15.0

# Read when torch is imported. Spinning threads would make small networks ten times as slow where
# other processes want the cores.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')


def claim_domain() -> tuple[int, socket.socket]:
    """
    Return a domain id that no participant uses, and a socket that keeps other tests off it.

    Participants of domain d use UDP ports from 7400 + 250 d on: the tenth is that of the first
    one, and the last is used by none.
    """
    for domain in random.sample(DOMAINS, len(DOMAINS)):
        first_port = 7400 + 250 * domain
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(('', first_port + 249))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as participant:
                participant.bind(('', first_port + 10))
        except OSError:
            claim.close()
            continue
        return domain, claim
    raise RuntimeError(f'no free ROS domain among {DOMAINS}')


@pytest.fixture
def ros_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Mapping[str, str]]:
    """
    Give the test a ROS domain and a log folder of its own, and the Fast DDS profile.

    Set for the test's process, and returned as the environment for those that it starts.
    """
    domain, claim = claim_domain()
    monkeypatch.setenv('ROS_DOMAIN_ID', str(domain))
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'log'))
    monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', str(PROFILE))
    monkeypatch.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', str(PROFILE))
    monkeypatch.setenv('PYTHONUNBUFFERED', '1')
    with claim:
        yield dict(os.environ)


class Launched:
    """A launch file that runs in a session of its own, so that one signal reaches all of it."""

    def __init__(self, command: list[str], environment: Mapping[str, str], output: Path) -> None:
        self.output_file = output
        with output.open('wb') as file:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        """Return what launch and its nodes have printed so far."""
        return self.output_file.read_text(encoding='utf-8', errors='replace')

    def wait_for(self, text: str, *, timeout_s: float = 30.0) -> None:
        """
        Wait until the output holds a text.

        :raises AssertionError: it has not come in time, or launch has ended without it.
        """
        deadline = time.monotonic() + timeout_s
        while text not in self.output():
            ended = self.process.poll() is not None
            if (ended or time.monotonic() > deadline) and text not in self.output():
                raise AssertionError(f'{text!r} is not in the output:\n{self.output()}')
            time.sleep(0.05)

    def stop(self) -> int:
        """
        Interrupt launch and its nodes as Ctrl-C does, and return the exit code of launch.

        SIGTERM would leave the nodes running; what does not end in time is killed.
        """
        try:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGINT)
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return -signal.SIGKILL
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # whatever outlived launch
            self.process.wait()


@pytest.fixture
def launched(
    ros_environment: Mapping[str, str], tmp_path: Path
) -> Iterator[Callable[..., Launched]]:
    """
    Return a function that starts a launch file and stops it when the test ends.

    `launched('drive.launch.py', 'device:=cpu')` is one of this package's; a path works too.
    """
    running: list[Launched] = []

    def launch(file: str | Path, *arguments: str) -> Launched:
        ros2 = shutil.which('ros2')
        assert ros2, 'the ros2 command is not on the PATH'
        where = [str(file)] if Path(file).is_file() else ['dense_perception', str(file)]
        output = tmp_path / f'launch_{len(running)}.txt'
        running.append(Launched([ros2, 'launch', *where, *arguments], ros_environment, output))
        return running[-1]

    yield launch
    for process in running:
        process.stop()
