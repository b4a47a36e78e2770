"""Trace the way of one token, of one GRPO step and of one `teach` run, and write them to docs/explanation/house.md.

    python scripts/paths.py

A way lists each file when it is first entered, with the function, indented by the number of files that led there.
`tests/laws/test_ways.py` traces the ways again and compares the page.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import rorqual
from rorqual import Engine, Message, Request, fit, grpo, sft
from rorqual.core.records import RunDir
from rorqual.engine.request import SamplingParams
from rorqual.teach.config import TeachConfig
from rorqual.teach.rungs.language_model import TAUGHT
from rorqual.teach.stages import teach

SOURCE = Path(rorqual.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "explanation" / "house.md"
LEFT_OUT = ("core/",)
"""Packages that everything calls: configuration, records, errors, progress."""


class Trace:
    """The files of Rorqual that a call enters in its thread, in the order of their first function.

    `most` is the largest number of files that lead to a listed one.
    """

    def __init__(self, most: int) -> None:
        self.most, self.lines = most, dict[str, tuple[int, str]]()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(SOURCE)) or code.co_name.startswith("<"):
            return
        file = Path(code.co_filename).relative_to(SOURCE).as_posix()
        if file in self.lines or file.startswith(LEFT_OUT):
            return
        depth = len(set(self._callers(frame)) - {file})
        if depth <= self.most:
            self.lines[file] = depth, code.co_qualname.split(".<locals>")[0]

    def _callers(self, frame: FrameType) -> Iterator[str]:
        while (back := frame.f_back) is not None:
            frame = back
            file = Path(frame.f_code.co_filename)
            if file.is_relative_to(SOURCE) and (name := file.relative_to(SOURCE).as_posix()) in self.lines:
                yield name

    def text(self) -> str:
        """Return the way as lines of file and function."""
        width = max(2 * depth + len(file) for file, (depth, _) in self.lines.items()) + 2
        return "".join(
            f"{'  ' * depth + file:{width}}{name}\n".replace(" \n", "\n") for file, (depth, name) in self.lines.items()
        )


@contextmanager
def traced(most: int) -> Iterator[Trace]:
    """Trace the calls in the `with` block."""
    trace = Trace(most)
    sys.setprofile(trace)
    try:
        yield trace
    finally:
        sys.setprofile(None)


def token(run: Path) -> str:
    """Trace one decode step of three sequences."""
    engine = Engine(run)
    for seed in range(3):
        engine.submit(
            Request((Message("user", "add 12+34"),), SamplingParams(max_tokens=30, temperature=1.0, seed=seed))
        )
    for _ in range(4):
        engine.step()
    with traced(most=99) as trace:
        engine.step()
    return trace.text()


def grpo_step(run: Path, out: Path) -> str:
    """Trace one step of GRPO, from the loop on."""
    job = grpo(task="families:add", start=str(run), steps=1, problems=2, samples=2, max_tokens=8)
    with traced(most=2) as trace:
        fit(job, RunDir(out), threads=1, quiet=True)
    return trace.text()


def taught(run: Path, out: Path) -> str:
    """Trace a run of `teach` on sixty examples."""
    file = out.with_suffix(".csv")
    file.write_text("text,label\n" + "".join(f"late parcel {n},delay\nlost parcel {n},loss\n" for n in range(60)))
    with traced(most=1) as trace:
        keys = {"base": str(run), "minutes": 0.05, "encoder": "none", "rung": TAUGHT, "quiet": True}
        config = TeachConfig(file=str(file), **keys)
        teach(config, out, threads=1, import_progress=lambda *_: None)
    return trace.text()


def ways() -> dict[str, str]:
    """Return the traced ways by their names on the page."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        fit(sft(task="families:add", size="tiny", steps=2), RunDir(run), quiet=True)
        return {
            "token": token(run),
            "grpo": grpo_step(run, Path(folder) / "grpo"),
            "teach": taught(run, Path(folder) / "taught"),
        }


def written(page: str, found: dict[str, str]) -> str:
    """Return the page with the ways between their marks."""
    for name, text in found.items():
        before, mark, rest = page.partition(f"<!-- way: {name} -->\n```text\n")
        if not mark:
            raise ValueError(f"{PAGE.name} has no mark of the way '{name}'")
        page = before + mark + text + "```" + rest.partition("```")[2]
    return page


def main() -> None:
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), ways()), encoding="utf-8")


if __name__ == "__main__":
    main()
