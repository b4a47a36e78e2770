"""Settings of glibc's allocator, with which a process keeps freed memory for reuse.

By default, glibc allocates each memory block above a threshold with `mmap`. Free memory at the top of the heap is returned to
the kernel once the free memory reaches twice the `mmap` threshold. A model step allocates the same few megabytes again and
again, and the kernel must zero each new page. With the default settings, zeroing pages took about 6 % of training time, and 7
to 45 % of prefill time, depending on the size of the largest tensors (docs/LOG.md).
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

LARGE = 32 << 20
"""Memory blocks of at least `LARGE` bytes are allocated with `mmap`. glibc accepts no larger `mmap` threshold."""
KEPT = 512 << 20
"""Maximum free bytes that glibc keeps at the top of the heap. Free blocks below the top stay in the heap until
`return_freed_memory` is called."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in malloc.h
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


@cache
def keep_freed_memory() -> bool:
    """Configure the allocator of this process to keep freed memory. Return whether the allocator was configured.

    Returns False if the C library is not glibc, or if an environment variable already configures the allocator. Calls after
    the first do nothing.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Set both thresholds: a single one disables glibc's dynamic threshold, and allocation is then slower than with the defaults.
    return bool(mallopt(_MMAP_THRESHOLD, LARGE)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))


def return_freed_memory() -> None:
    """Return all free heap memory to the system, including free blocks below the top of the heap.

    Call this function after freeing large temporary tensors, such as unpacked weights after repacking.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
