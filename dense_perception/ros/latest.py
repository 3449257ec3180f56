"""Hand-overs between threads, where the newest item wins, and the thread that takes them."""

from collections.abc import Callable, Hashable
from contextlib import suppress
from pathlib import Path
import sys
from threading import Condition, get_ident, Lock, Thread
import time
from typing import Generic, Protocol, TypeVar

from dense_perception.errors import DensePerceptionError
from dense_perception.ros.diagnostics import explain

Item = TypeVar('Item')
Sender = TypeVar('Sender', bound=Hashable)
Taken = TypeVar('Taken')
Taken_co = TypeVar('Taken_co', covariant=True)

HANGS_AFTER_S = 10.0  # seconds at work without any progress


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


class Ended(DensePerceptionError):
    """The work that a process is for has come to an end that it cannot recover from."""


class Slot(Protocol[Taken_co]):
    """Where a worker takes what waits."""

    @property
    def closed(self) -> bool:
        """Whether nothing more comes."""

    def take(self) -> Taken_co | None:
        """Remove and return what waits, waiting for something."""


class Worker(Generic[Taken]):
    """
    A thread that takes what waits and works on it, and of which others can ask how it is.

    What the work raises costs what it worked on, and is no end; but `Ended` is, and so is what
    is raised elsewhere in the thread.
    """

    def __init__(
        self,
        name: str,
        slot: Slot[Taken],
        work: Callable[[Taken], None],
        blame: Callable[[Taken, BaseException], None],
    ) -> None:
        """
        Make the thread; `start` starts it.

        :param name: what it is called where its end is told.
        :param slot: what it takes from, until that is closed.
        :param work: takes what waited.
        :param blame: takes what waited, and what `work` raised; nothing that it raises is an end.
        """
        self._name, self._slot, self._work, self._blame = name, slot, work, blame
        self._thread = Thread(target=self._run, name=name)
        self._since_s: float | None = None  # monotonic time of the newest progress; while at work
        self._reason = ''  # why the thread has ended, or is about to
        self._asked = False

    def start(self) -> None:
        """Begin to take what waits."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the work in hand, after the slot was closed."""
        if self._thread.is_alive():
            self._thread.join()

    def progress(self) -> None:
        """
        Say, in the work, that it gets on: it hangs where this is not said for long.

        In another thread it says nothing, as the work may hang beside that.
        """
        if get_ident() == self._thread.ident:
            self._since_s = time.monotonic()

    @property
    def trouble(self) -> str:
        """Why nothing gets done: the thread has ended before its time, or hangs; else empty."""
        if self._ended:
            return f'{self._name} has stopped: {self._reason or "its thread is gone"}'
        since_s = self._since_s
        if since_s is None or (time_s := time.monotonic() - since_s) <= HANGS_AFTER_S:
            return ''
        return f'{self._name} hangs in {self._place()} for {time_s:.0f} s'

    def check(self) -> None:
        """
        Let who asks end as well where the thread has, because it does not come back.

        At the second time only, so that `trouble` may be told between.

        :raises Ended: the thread has ended before its time.
        """
        if not self._ended:
            return
        if self._asked:
            raise Ended(self.trouble)
        self._asked = True

    @property
    def _ended(self) -> bool:
        started = self._thread.ident is not None
        return bool(self._reason) or (
            started and not self._thread.is_alive() and not self._slot.closed
        )

    def _place(self) -> str:
        """Return where the thread is, as function, file and line."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        if frame is None:
            return 'its end'
        code = frame.f_code
        return f'{code.co_name} ({Path(code.co_filename).name}:{frame.f_lineno})'

    def _run(self) -> None:
        try:
            while not self._slot.closed:
                taken = self._slot.take()
                if taken is not None:
                    self._serve(taken)
        except Ended as end:
            self._reason = str(end)
        except BaseException as error:
            self._reason = in_words(error)
            raise  # so that Python prints where

    def _serve(self, taken: Taken) -> None:
        self.progress()
        try:
            self._work(taken)
        except Ended:
            raise
        # A library that calls sys.exit, for example, which would end the thread without a word.
        except BaseException as error:  # noqa: BLE001
            with suppress(BaseException):  # memory may be short for words, too
                self._blame(taken, error)
        finally:
            self._since_s = None


def in_words(error: BaseException) -> str:
    """Say what went wrong, whatever becomes of that."""
    try:
        return explain(error)
    except BaseException:  # noqa: BLE001 - memory may be short for words, too
        return type(error).__name__
