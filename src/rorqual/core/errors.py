"""Errors that a user can fix. Each error says where the problem is, what is wrong, and what the user can do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class RorqualError(Exception):
    """Base class of errors that a user can fix.

    `where` names the file, line or key, `what` describes the problem, and `remedy` says what to do. The command line prints
    the error message without a traceback and exits with `exit_status`.
    """

    exit_status = 2

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        head = f"{where}: {what}" if where else what
        super().__init__(f"{head}\n  {remedy}" if remedy else head)


class ConfigError(RorqualError):
    """An invalid configuration: an unknown key, a wrong type, or values that contradict each other."""


class DataError(RorqualError):
    """Unusable data, such as a line that is not JSON, or a conversation with nothing to train on."""


class CheckpointError(RorqualError):
    """A checkpoint that is incomplete or does not fit the model: wrong shapes, or missing or unexpected tensors."""


class NumericsError(RorqualError):
    """A numerical fault that must stop the run, such as a NaN loss, or sampler log-probabilities that differ from the
    trainer's."""


class TaskError(RorqualError):
    """An exception in the code of a task, which is either in the task's problem generator or in its grader."""


@contextmanager
def name_file_in_write_errors(path: Path) -> Iterator[None]:
    """Convert an OSError in the `with` block, which writes the file `path`, to a RorqualError that names `path`."""
    try:
        yield
    except OSError as error:
        raise RorqualError(
            f"cannot write: {error.strerror}",
            where=str(path),
            remedy="Free disk space, raise the limit or quota, or choose another folder. Nothing saved is lost: the same command resumes.",
        ) from error


def suggest_name(name: str, names: Iterable[str]) -> str:
    """Return a hint such as `Did you mean 'lr'?`, or a list of all `names` if none resembles `name`."""
    known = sorted(names)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    return "Known: " + ", ".join(known) + "." if known else ""
