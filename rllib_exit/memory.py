"""How a process that trains on the CPU holds its memory."""

from __future__ import annotations

import ctypes
import platform


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next micro-batch.

    By default glibc gives large tensors back to the kernel when they are freed. To fault in fresh pages for every
    activation and gradient then takes longer than to compute them. GPU tensors are not concerned.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_top_pad, 2**28)
        libc.mallopt(m_mmap_max, 0)


def release_freed_memory() -> None:
    """Gives kept memory back to the kernel once: with tensors of ever new sizes it fragments, and grows."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
