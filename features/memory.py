"""What becomes of freed memory while large arrays come and go, chunk by chunk and poll by poll."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of `mallopt(3)`."""
_KEPT_BYTES, _LARGE_BYTES = 64 * 2**20, 32 * 2**20


def keep_freed() -> None:
    """Have the C library keep up to 64 MiB of freed memory, in blocks of up to 32 MiB, for the next array.

    By default it gives larger arrays back to the kernel at once, which interrupts all threads of the process and clears each page anew:
    a tenth of the time of `premonitor features`, a twentieth of a worker's in a backlog. Holds from then on for the whole process; a C
    library other than glibc is left alone.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
