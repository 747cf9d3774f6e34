from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import ctypes, psutil
from rllib_exit.memory import keep_freed_memory, release_freed_memory

def resident():
    return psutil.Process().memory_info().rss >> 20

keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
start = resident()
blocks = []
for _ in range(100):
    blocks += [libc.malloc(1 << 20), libc.malloc(64)]  # small ones between the large ones live on
    libc.memset(blocks[-2], 1, 1 << 20)
for block in blocks[::2]:
    libc.free(block)
kept = resident()
release_freed_memory()
print(kept - start, resident() - start)
"""


def test_freed_memory_is_kept_until_it_is_released():
    kept, left = map(
        int, subprocess.run([sys.executable, "-c", SCRIPT], check=True, stdout=subprocess.PIPE).stdout.split()
    )
    assert kept > 90 and left < 20
