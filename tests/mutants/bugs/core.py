"""Bugs in `core`. Each is put back alone: see ../mutant.py."""

from __future__ import annotations

from mutant import one

MUTANTS = (
    one(
        "a torn checkpoint is taken for a whole one",
        "torchtitan#3735",
        "core/records.py",
        "if not file.is_file() or file.stat().st_size != size:",
        "if not file.is_file():",
        "tests/train/test_resume.py::test_a_torn_checkpoint_is_named_and_skipped",
    ),
)
