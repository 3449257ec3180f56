"""Hand-overs between threads: the newest item wins."""

from collections.abc import Hashable
from threading import Condition, Lock
import time
from typing import Generic, TypeVar

Item = TypeVar('Item')
Sender = TypeVar('Sender', bound=Hashable)


class LatestOfEach(Generic[Sender, Item]):
    """
    Hand the newest item of every sender from any thread to any other.

    A receiver slower than the senders loses items, never time; one that takes all that wait
    serves a slow sender as often as it serves one that never rests.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._items: dict[Sender, Item] = {}  # those that wait; who has waited longest is first
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        with self._changed:
            return self._closed

    def put(self, sender: Sender, item: Item) -> bool:
        """
        Store an item in place of the one of its sender that waits, if any; never blocks.

        :returns: whether an item was lost: the one that waited, or this one after closing.
        """
        with self._changed:
            if self._closed:
                return True
            replaced = sender in self._items
            self._items[sender] = item
            self._changed.notify()
            return replaced

    def take(self, timeout_s: float | None = None) -> dict[Sender, Item]:
        """
        Remove and return every item that waits, waiting for one.

        :param timeout_s: longest wait in seconds; None waits until one comes or it is closed.
        :returns: nothing when the time is over or it is closed.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._items and not self._closed:
                rest = None if deadline is None else deadline - time.monotonic()
                if rest is not None and rest <= 0:
                    break
                self._changed.wait(rest)
            return self._emptied()

    def close(self) -> list[Sender]:
        """
        Drop the items that wait and wake every thread in `take`; later items are lost.

        :returns: whose items waited.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return list(self._emptied())

    def _emptied(self) -> dict[Sender, Item]:
        items, self._items = self._items, {}
        return items


class Latest(Generic[Item]):
    """
    Hand the newest item from any thread to any other, and count what nobody took.

    A receiver slower than the sender loses items, never time.
    """

    def __init__(self) -> None:
        self._slot: LatestOfEach[None, Item] = LatestOfEach()
        self._lock = Lock()
        self._dropped = 0

    @property
    def dropped(self) -> int:
        """Items replaced or put after closing, since the start."""
        with self._lock:
            return self._dropped

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._slot.closed

    def put(self, item: Item) -> None:
        """Store an item in place of the one that waits, if any; never blocks."""
        with self._lock:
            self._dropped += self._slot.put(None, item)

    def take(self, timeout_s: float | None = None) -> Item | None:
        """
        Remove and return the item, waiting for one.

        :param timeout_s: longest wait in seconds; None waits until one comes or it is closed.
        :returns: None when the time is over or it is closed.
        """
        return self._slot.take(timeout_s).get(None)

    def close(self) -> None:
        """Drop the item that waits and wake every thread in `take`; later items are dropped."""
        with self._lock:
            self._dropped += len(self._slot.close())
