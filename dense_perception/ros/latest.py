"""A one-slot hand-over between threads: the newest item wins."""

from threading import Condition
import time
from typing import Generic, TypeVar

Item = TypeVar('Item')


class Latest(Generic[Item]):
    """
    Hand the newest item from any thread to any other, and count what nobody took.

    A receiver slower than the sender loses items, never time.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._items: list[Item] = []  # empty or one; so that None may be an item
        self._dropped = 0
        self._closed = False

    @property
    def dropped(self) -> int:
        """Items replaced, cleared or put after closing, since the start."""
        with self._changed:
            return self._dropped

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        with self._changed:
            return self._closed

    def put(self, item: Item) -> None:
        """Store an item in place of the one that waits, if any; never blocks."""
        with self._changed:
            if self._closed:
                self._dropped += 1
                return
            self._dropped += len(self._items)
            self._items = [item]
            self._changed.notify()

    def take(self, timeout_s: float | None = None) -> Item | None:
        """
        Remove and return the item, waiting for one.

        :param timeout_s: longest wait in seconds; None waits until one comes or it is closed.
        :returns: None when the time is over or it is closed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._items and not self._closed:
                rest = None if deadline is None else deadline - time.monotonic()
                if rest is not None and rest <= 0:
                    return None
                self._changed.wait(rest)
            return self._items.pop() if self._items else None

    def clear(self) -> None:
        """Drop the item that waits, if any."""
        with self._changed:
            self._dropped += len(self._items)
            self._items = []

    def close(self) -> None:
        """Drop the item that waits and wake every thread in `take`; later items are dropped."""
        with self._changed:
            self._closed = True
            self._dropped += len(self._items)
            self._items = []
            self._changed.notify_all()
