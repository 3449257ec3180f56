"""Making batches ahead of the step that needs them."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
import time
from typing import Generic, TypeVar

Batch = TypeVar('Batch')


class Loader(Generic[Batch]):
    """Makes the batches of coming steps in threads, and tells how long they were waited for."""

    def __init__(self, make: Callable[[int], Batch], threads: int) -> None:
        """
        Take the function that makes batches.

        :param make: the batch of a step; called in threads, several steps at a time.
        """
        self._make, self._threads = make, threads
        self.waited_s = 0.0  # since the start

    def batches(self, start: int, end: int) -> Iterator[Batch]:
        """Return the batches of the steps from `start` to `end` - 1, in order."""
        pool = ThreadPoolExecutor(self._threads, 'loader')
        ahead = 2 + self._threads
        waiting: list[Future[Batch]] = []
        try:
            for step in range(start, end):
                while len(waiting) < ahead and step + len(waiting) < end:
                    waiting.append(pool.submit(self._make, step + len(waiting)))
                before = time.monotonic()
                batch = waiting.pop(0).result()
                self.waited_s += time.monotonic() - before
                yield batch
        finally:
            # What has not begun is not begun any more: nobody will take it.
            pool.shutdown(cancel_futures=True)
