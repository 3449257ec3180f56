"""What the process of a node needs before rclpy starts."""

from collections.abc import Iterator
from contextlib import contextmanager
import signal


@contextmanager
def quiet_interrupts() -> Iterator[None]:
    """
    Let an interrupt end the ROS context, which rclpy sees to, and nothing else.

    KeyboardInterrupt beside that could come anywhere, in the clean-up too: from a terminal two
    interrupts come, the second one through launch.
    """
    signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the interpreter would take ours away
