"""A known bug as a change to the source, with the tests that must fail when it is put back."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """Text of a source file, and what the bug writes instead."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """`seen`: where it was reported."""

    name: str
    seen: str
    changes: tuple[Change, ...]
    tests: tuple[str, ...]


def one(name: str, seen: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(name, seen, (Change(f"src/rorqual/{file}", old, new),), tests)
