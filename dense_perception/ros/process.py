"""What the process of a node needs before rclpy starts."""

from collections.abc import Iterator
from contextlib import contextmanager
import ctypes
import signal


def keep_memory() -> None:
    """
    Tell glibc to keep freed memory for the next image instead of returning it.

    Images of several megabytes otherwise cost fresh pages, tens of milliseconds, each time.
    """
    try:
        libc = ctypes.CDLL('libc.so.6')
    except OSError:
        return  # another C library, which has no such habit
    libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD; 32 MiB is the most that it takes
    libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


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
