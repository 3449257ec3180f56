"""How the memory of a process is kept, and when it is let go."""

import ctypes
import gc

# Parameters of mallopt(3).
_MMAP_THRESHOLD = -3
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_ARENA_MAX = -8


def keep_memory() -> None:
    """
    Tell glibc to keep freed memory for the next image instead of returning it.

    Images of several megabytes otherwise cost fresh pages, tens of milliseconds, each time. All
    threads share one place: each would keep as much as it ever needed, and a thread that begins
    anew may be given a place that it has not had before.
    """
    # 32 MiB is the most that glibc takes.
    _set({_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 1 << 30, _ARENA_MAX: 1})


def keep_all_memory() -> None:
    """
    Tell glibc to keep all freed memory for the next step, in one place that all threads share.

    The features of a batch are larger than what `keep_memory` keeps, and threads that each keep
    what they freed would need several times as much.
    """
    _set({_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0, _ARENA_MAX: 1})


def release_memory() -> None:
    """
    Let go of what nothing refers to any more, and tell glibc to return what it kept of it.

    For moments after which everything is made anew: in the gaps that the old left, the new would
    not quite fit, and each time a little more memory would be taken.
    """
    gc.collect()  # networks stand in cycles, and the collector may not look for hours
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


def _set(values: dict[int, int]) -> None:
    libc = _libc()
    if libc is not None:
        for parameter, value in values.items():
            libc.mallopt(parameter, value)


def _libc() -> ctypes.CDLL | None:
    """Return glibc; None where another C library is used, which has other habits."""
    try:
        return ctypes.CDLL('libc.so.6')
    except OSError:
        return None
