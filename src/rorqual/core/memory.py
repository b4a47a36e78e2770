"""Freed memory is kept for the next use, where the C library would give it back to the system and have it again page by page.

glibc takes blocks above a threshold from the system one by one, and gives the top of its heap back as soon as it is twice that threshold. A
step of a model asks for the same few megabytes again and again: clearing the pages anew was 7 to 45 % of a prefill's time, as its
largest tensors fell, and some 6 % of training's (docs/LOG.md).
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

LARGE = 32 << 20
"""Bytes from which on a block is the system's own: the most that glibc lets one ask for."""
KEPT = 512 << 20
"""Bytes at the top of the heap that are kept. Holes below are kept however large they are, until `give_back`."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_... of malloc.h
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


@cache
def keep_freed() -> bool:
    """Set it for this process, once; whether it was. Not where the environment says how memory is kept, nor without glibc."""
    if sys.platform != "linux" or any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Both: one alone ends the other's growing by itself, and is slower than none.
    return bool(mallopt(_MMAP_THRESHOLD, LARGE)) and bool(mallopt(_TRIM_THRESHOLD, KEPT))


def give_back() -> None:
    """Give all that is free to the system, holes too: for after something large, such as weights that were laid out anew."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
