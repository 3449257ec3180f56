"""
Remove the shared memory that killed Fast DDS processes left behind.

A segment is memory, 64 MiB with the profile of this package, and only an orderly end frees it.
Its reader holds a lock on a file beside it, which the kernel releases however the reader ends,
and which shows in other containers, too. What has no lock is held by whoever maps it.
"""

import fcntl
from pathlib import Path
import re

FOLDER = Path('/dev/shm')
SEGMENT_OR_PORT = re.compile(r'fastdds_([0-9a-f]{16}|port\d+)')
LOCKS = ('_el', '_sl')  # end the names of the lock files: exclusive, shared


def is_locked(lock: Path) -> bool:
    """Return whether a live process, in whatever container, holds the lock."""
    try:
        with lock.open('rb') as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def mapped(folder: Path) -> set[str]:
    """Return the names of the folder's files that visible processes map."""
    names: set[str] = set()
    for maps in Path('/proc').glob('[0-9]*/maps'):
        try:
            text = maps.read_text(encoding='utf-8', errors='replace')
        except OSError:  # it ended, or is another user's
            continue
        names.update(re.findall(rf'{re.escape(str(folder))}/(fastdds_\w+)', text))
    return names


def clean(folder: Path = FOLDER) -> int:
    """Remove what no live process holds and return how many segments and ports that was."""
    candidates = {file.name for file in folder.iterdir() if SEGMENT_OR_PORT.fullmatch(file.name)}
    count = 0
    for name in candidates - mapped(folder):
        try:
            if any(is_locked(folder / f'{name}{lock}') for lock in LOCKS):
                continue
            for leftover in (name, *(f'{name}{lock}' for lock in LOCKS), f'sem.{name}_mutex'):
                (folder / leftover).unlink(missing_ok=True)
        except PermissionError:  # another user's
            continue
        count += 1
    return count


if __name__ == '__main__':
    if removed := clean():
        print(f'removed {removed} stale Fast DDS segments and ports from {FOLDER}')
