"""Exit statuses of a job's process, from which the server learns why the process ended without an outcome."""

from __future__ import annotations

DISK_FULL = 28
PAUSED = 75
OUT_OF_MEMORY = 76
ORPHANED = 77
"""The server is gone."""
