"""Bugs in `lab`. Each is put back alone: see ../mutant.py."""

from __future__ import annotations

from mutant import one

MUTANTS = (
    one(
        "padding counts as load where balance is measured",
        "torchtitan#4168, Megatron-LM#1984",
        "lab/balance.py",
        "valid = batch.segments.flatten() >= 0",
        "valid = batch.segments.flatten() >= -1",
        "tests/lab/test_balance.py::test_load_and_loss_counted_again_from_outside",
    ),
)
