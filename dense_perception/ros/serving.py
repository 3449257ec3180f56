"""How a node is run and served, so that an error in a callback is no end."""

from collections.abc import Callable
import time
import traceback
from typing import cast, Protocol, TypeVar

from dense_perception.errors import DensePerceptionError
from dense_perception.memory import keep_memory
from dense_perception.ros.diagnostics import explain
from dense_perception.ros.latest import Ended
from dense_perception.ros.process import quiet_interrupts
import rclpy
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterException,
)
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node

_PAUSE_S = 0.01  # after an error; one that comes at every step shall not take a whole core
_REPEAT_S = 1.0  # until the same error is logged again


class Runnable(Protocol):
    """A node that `run` can run."""

    def serve(self, executor: SingleThreadedExecutor) -> None:
        """Serve callbacks until the context ends."""

    def close(self) -> None:
        """End what the node does beside callbacks; the context may have ended already."""

    def destroy_node(self) -> None:
        """Let go of everything, as rclpy does."""


AnyRunnable = TypeVar('AnyRunnable', bound=Runnable)


def run(
    make: Callable[[], AnyRunnable],
    arguments: list[str] | None = None,
    begin: Callable[[AnyRunnable], None] = lambda node: None,
) -> int:
    """
    Run a node until it is told to stop; returns the exit status.

    :param make: makes the node; what cannot be of its parameters ends the process with one line.
    :param begin: is called before the node is served.
    """
    keep_memory()
    with quiet_interrupts():
        return _run(make, arguments, begin)


def _run(
    make: Callable[[], AnyRunnable],
    arguments: list[str] | None,
    begin: Callable[[AnyRunnable], None],
) -> int:
    try:
        rclpy.init(args=arguments)
    except Exception as error:  # noqa: BLE001 - a wrong argument, or no middleware of a name
        get_logger('dense_perception').fatal(f'ROS cannot be started: {explain(error)}')
        return 1
    node: AnyRunnable | None = None
    try:
        node = make()
        executor = SingleThreadedExecutor()
        executor.add_node(cast(Node, node))  # a protocol cannot say that
        begin(node)
        node.serve(executor)
    except (
        DensePerceptionError,
        InvalidParameterTypeException,
        InvalidParameterValueException,
        ParameterException,
    ) as error:
        get_logger('dense_perception').fatal(str(error))
        return 1
    except Exception:
        if rclpy.ok():  # else interrupted in the middle of something
            raise
    finally:
        if node is not None:
            node.close()
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


def serve(node: Node, executor: Executor, tell: Callable[[str], None]) -> None:
    """
    Serve a node until its context ends; what a callback raises is logged and told.

    Whatever rclpy calls is meant: subscriptions, timers, services and events of topics.

    :param executor: holds the node.
    :param tell: takes each error in words.
    :raises Ended: raised by a callback, because serving on would be of no use.
    """
    logged, until = '', 0.0
    while node.context.ok():
        try:
            executor.spin()
            return
        except ExternalShutdownException:
            return
        except Ended:
            raise
        except Exception as error:  # noqa: BLE001 - of a callback
            if not node.context.ok():  # it may end between two steps of the executor
                return
            text = f'error in a callback: {explain(error)}'
            tell(text)
            now = time.monotonic()
            if text != logged or now > until:
                node.get_logger().error(f'{text}\n{traceback.format_exc()}')
                logged, until = text, now + _REPEAT_S
            time.sleep(_PAUSE_S)
