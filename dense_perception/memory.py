"""How the memory of a process is kept; called before it is used."""

import ctypes

# Parameters of mallopt(3).
_MMAP_THRESHOLD = -3
_TRIM_THRESHOLD = -1
_MMAP_MAX = -4
_ARENA_MAX = -8


def keep_memory() -> None:
    """
    Tell glibc to keep freed memory for the next image instead of returning it.

    Images of several megabytes otherwise cost fresh pages, tens of milliseconds, each time.
    Threads that begin from now on share one place: in several, each would fill up in turn.
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


def _set(values: dict[int, int]) -> None:
    try:
        libc = ctypes.CDLL('libc.so.6')
    except OSError:
        return  # another C library, which has no such habit
    for parameter, value in values.items():
        libc.mallopt(parameter, value)
