"""Starts the launched node and its player as processes, and spins a node that listens to them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import os
from pathlib import Path
import shutil
import signal
import subprocess
from typing import TypeVar

from dense_perception.errors import DensePerceptionError
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

_STOP_S = 15.0  # what processes get to end after an interrupt
_TAIL = 2000  # characters of a log that are shown

Listener = TypeVar('Listener', bound=Node)


class RunError(DensePerceptionError):
    """Node or player came to no end; the message says why."""


@dataclass(frozen=True)
class Running:
    """A process and its log."""

    process: 'subprocess.Popen[bytes]'
    log: Path

    def failure(self, what: object) -> RunError:
        """Return an error with the end of the log."""
        tail = self.log.read_text(encoding='utf-8', errors='replace')[-_TAIL:]
        return RunError(f'{what}; the end of {self.log}:\n{tail}')

    def check(self) -> None:
        """
        Look whether the process still runs.

        :raises RunError: it does not.
        """
        code = self.process.poll()
        if code is not None:
            raise self.failure(f'ended early with {code}')


def launch_command(topic: str, *arguments: str) -> list[str]:
    """
    Return the command that launches the node for a camera.

    :param topic: of the camera's images, for compressed ones without the last `/compressed`.
    :param arguments: more `name:=value` for the launch file.
    :raises RunError: there is no ros2 command.
    """
    ros2 = shutil.which('ros2')
    if ros2 is None:
        raise RunError('the ros2 command is not on the PATH; source your ROS 2, or use make drive')
    camera, _, image = topic.rpartition('/')
    wired = f'camera:={camera}', f'image_topic:={image}'
    return [ros2, 'launch', 'dense_perception', 'drive.launch.py', *wired, *arguments]


@contextmanager
def running(command: list[str], log: Path) -> Iterator[Running]:
    """Run a command in a session of its own; interrupt all of it at the end, as Ctrl-C does."""
    with log.open('wb') as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Running(process, log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def listening(
    make: Callable[[], Listener],
) -> Iterator[tuple[Listener, SingleThreadedExecutor]]:
    """Give a node and what spins it, in a ROS context of their own."""
    rclpy.init()
    try:
        node = make()
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            yield node, executor
        finally:
            executor.shutdown()
            node.destroy_node()
    finally:
        rclpy.try_shutdown()


def spin_once(executor: SingleThreadedExecutor, timeout_s: float) -> None:
    """
    Serve one callback, or wait for one.

    :raises RunError: interrupted.
    """
    try:
        executor.spin_once(timeout_sec=timeout_s)
    except (KeyboardInterrupt, ExternalShutdownException):
        raise RunError('interrupted') from None
