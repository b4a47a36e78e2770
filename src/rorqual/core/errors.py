"""Errors that a user can mend: each names the place, the problem and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RorqualError(Exception):
    """Something the user can mend.

    `where` names the file (with line or key), `what` the problem, `remedy` what to do about it.
    The command line prints the message without a traceback and exits with 2.
    """

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        head = f"{where}: {what}" if where else what
        super().__init__(f"{head}\n  {remedy}" if remedy else head)


class ConfigError(RorqualError):
    """A configuration that cannot be meant: an unknown key, a wrong type, values that contradict each other."""


class DataError(RorqualError):
    """Data that cannot be used: a line that is not JSON, a conversation with nothing to train on."""


class CheckpointError(RorqualError):
    """A checkpoint that is torn, of another shape, or lacks or adds names."""


class NumericsError(RorqualError):
    """A number that must stop the run: a NaN in a loss, a sampler that disagrees with the trainer."""


class TaskError(RorqualError):
    """A task whose own code failed: a problem generator or grader that raised."""


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint such as `did you mean 'lr'?`, or the list of what exists where nothing is near."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    return "Known: " + ", ".join(known) + "." if known else ""
