"""How a node is served, so that an error in a callback is no end."""

from collections.abc import Callable
import time
import traceback

from dense_perception.ros.diagnostics import explain
from rclpy.executors import Executor, ExternalShutdownException
from rclpy.node import Node

_PAUSE_S = 0.01  # after an error; one that comes at every step shall not take a whole core
_REPEAT_S = 1.0  # until the same error is logged again


def serve(node: Node, executor: Executor, tell: Callable[[str], None]) -> None:
    """
    Serve a node until its context ends; what a callback raises is logged and told.

    Whatever rclpy calls is meant: subscriptions, timers, services and events of topics.

    :param executor: holds the node.
    :param tell: takes each error in words.
    """
    logged, until = '', 0.0
    while node.context.ok():
        try:
            executor.spin()
            return
        except ExternalShutdownException:
            return
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
