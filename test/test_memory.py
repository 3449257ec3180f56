"""What glibc does with freed memory; in processes of their own, which the settings change."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='glibc is meant')

BEGIN = """
import ctypes
import resource
import sys
from threading import Barrier, Thread

from dense_perception import memory

def held():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20

if sys.argv[1]:
    getattr(memory, sys.argv[1])()
libc = ctypes.CDLL('libc.so.6')
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = int(sys.argv[2]) * 2**20

def fill():
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block

before = held()
"""

# Fill 24 MiB, or 200, free them, and tell how many MiB the process still has of them.
ONCE = """
libc.free(fill())
print(held() - before)
"""

# The same in each of three threads that live at one time, one after the other.
IN_THREADS = """
all_began = Barrier(3)

def work(turn):
    for now in range(3):
        all_began.wait()
        if now == turn:
            libc.free(fill())

threads = [Thread(target=work, args=[turn]) for turn in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(held() - before)
"""


def held_mib(script, function, size):
    command = [sys.executable, '-c', BEGIN + script, function, str(size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(
    ('function', 'size', 'kept'),
    [
        ('', 24, False),
        ('keep_memory', 24, True),
        ('keep_memory', 200, False),
        ('keep_all_memory', 24, True),
        ('keep_all_memory', 200, True),
    ],
)
def test_freed_memory_is_kept_as_the_function_says(function, size, kept):
    held = held_mib(ONCE, function, size)
    assert held > 0.9 * size if kept else held < 0.1 * size


def test_threads_share_the_memory_that_is_kept():
    assert 0.9 * 24 < held_mib(IN_THREADS, 'keep_memory', 24) < 1.2 * 24
