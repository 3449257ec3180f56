"""Signs of life while a library works for long without a word."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
import time

_EVERY_S = 10.0


@contextmanager
def telling(tell: Callable[[str], None], name: str, every_s: float = _EVERY_S) -> Iterator[None]:
    """
    Say from time to time, from a thread of its own, that something is still being made.

    :param tell: receives that.
    :param name: what is being made.
    :param every_s: seconds between.
    """
    done, began = Event(), time.monotonic()

    def say() -> None:
        while not done.wait(every_s):
            tell(f'{name}: still being made after {time.monotonic() - began:.0f} s')

    thread = Thread(target=say, name=f'telling of {name}', daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
