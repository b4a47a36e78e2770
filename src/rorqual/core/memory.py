"""Settings of glibc's allocator that keep freed memory for reuse.

By default glibc maps each block above a threshold separately, and returns the top of its heap once it reaches twice that
threshold. A model step requests the same few megabytes again and again, and the kernel must clear each new page. That cost
7 to 45 % of a prefill's time, depending on its largest tensors, and about 6 % of training's (docs/log/speed.md).
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

LARGE = 32 << 20
"""Blocks of this many bytes or more are mapped separately. It is the largest threshold that glibc accepts."""
KEPT = 512 << 20
"""Bytes kept free at the top of the heap. Free holes below the top are kept whatever their size, until `give_back`."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_... of malloc.h
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


@cache
def keep_freed() -> bool:
    """Configure the allocator of this process, once. Return whether it was configured.

    Nothing is configured without glibc, or if an environment variable already configures the allocator.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Set both: setting either alone disables glibc's dynamic threshold, and is slower than setting none.
    return bool(mallopt(_MMAP_THRESHOLD, LARGE)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))


def give_back() -> None:
    """Return all free memory to the system, holes included. Call it after large temporary memory, such as repacked weights."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
