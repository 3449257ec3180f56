"""What glibc does with freed memory; in processes of their own, which the settings change."""

import subprocess
import sys

import pytest

# Fill 24 MiB, or 200, free them, and tell how many MiB the process still has of them.
SCRIPT = """
import ctypes
import resource
import sys

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
before = held()
block = libc.malloc(size)
ctypes.memset(block, 1, size)
libc.free(block)
print(held() - before)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc is meant')
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
    command = [sys.executable, '-c', SCRIPT, function, str(size)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    held = float(run.stdout)
    assert held > 0.9 * size if kept else held < 0.1 * size
