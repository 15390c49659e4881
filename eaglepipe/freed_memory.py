"""Freed memory, kept by the process for what it computes next.

A forward on the CPU frees and asks for the same large blocks again and again. By default glibc gives them back to the
system each time, which clears every page anew: a fifth of the time of a small target's forward.
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGEST_BLOCK = 2**25  # the most that glibc takes; larger blocks go back to the system as ever
_MOST_KEPT = 2**30  # free at the end of the heap

KEEPING = {
    "MALLOC_MMAP_THRESHOLD_": str(_LARGEST_BLOCK),
    "MALLOC_TRIM_THRESHOLD_": str(_MOST_KEPT),
    "MALLOC_ARENA_MAX": "1",  # one heap for all threads, as a thread's own is given back whole
}
"""Environment of a process that keeps freed memory from its start on."""


def keep_freed_memory() -> None:
    """Have this process keep what it frees, up to a bound; does nothing without glibc or if the environment decides."""
    if sys.platform != "linux" or any(name in os.environ for name in KEEPING):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
    mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)
