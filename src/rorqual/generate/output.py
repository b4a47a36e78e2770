"""A resumable JSONL output file of answers. If the process is killed, no written answer is lost.

An output file `OUT` has two companion files. The journal `OUT.partial` has the output lines in the order in which the answers
finish. `OUT.made` records the input and the settings. When all output lines exist, the lines are written to `OUT` in the
order of the input. A command that is repeated with the same input and settings resumes with the missing lines. If the input
or the settings differ, the command raises an error.
"""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from rorqual.core.errors import ConfigError, DataError
from rorqual.core.journal import Journal, scan_journal
from rorqual.core.lock import Closable
from rorqual.core.progress import Progress
from rorqual.core.records import write_atomic, write_json
from rorqual.core.rows import csv_lines, dialect_like, read_rows
from rorqual.generate.prompts import PromptFile, RefusedRow, read_prompts

SYNC_SECONDS = 5.0
"""Minimum number of seconds between two `fsync` calls for the journal of answers."""
NONE = -1
SHOWN = 3
"""Maximum number of rows with errors in a summary."""
LINES, TABLES = (".jsonl", ".ndjson", ".json"), (".csv", ".tsv")
"""Endings of output files with JSON lines, and of tables."""
CHANGED = "Do not change the file, and run the command again."


class PartialOutput(Closable):
    """An unfinished output file of `rorqual generate`. Only one process at a time may open the file.

    `made` holds the input and all settings on which the answers depend. The complete output has `rows` lines. `last` is the
    line number of the last row in the prompt file. `count` is the number of output lines written so far, `errors` is the
    number of written lines with an error, `sure` that of lines whose answer is sure, and `whole` tells whether the complete output
    exists. If a killed process or a full
    disk left an incomplete line, the line is removed when the file is opened.

    Raises ConfigError if the existing files were written with a different input or different settings, or if the output was
    changed.
    """

    def __init__(self, out: Path, made: Mapping[str, Any], *, rows: int, last: int) -> None:
        self.out, self.rows = out, rows
        self.path, self.made_file = out.with_name(f"{out.name}.partial"), out.with_name(f"{out.name}.made")
        self.count = self.errors = self.sure = 0
        self.whole = False
        self._offsets = array("q", [NONE]) * (last + 1)
        self._journal: Journal | None = None
        check_writable_path(out)
        try:
            self._open_files(dict(made))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the journal and release its lock. The written lines remain in `OUT.partial`."""
        if self._journal is not None:
            self._journal.close()

    def has_answer(self, line: int) -> bool:
        """Return whether the answer to the row with the number `line` has been written."""
        return self._offsets[line] != NONE

    def append_records(self, lines: Mapping[int, Mapping[str, Any]]) -> None:
        """Append output records in one write. `lines` maps the line numbers of rows to output records. After `append_records`
        returns, the records are not lost if the process is killed."""
        assert self._journal is not None
        offsets = self._journal.append(lines.values())
        for offset, record in zip(offsets, lines.values(), strict=True):
            self._index_record(offset, record)

    def finish(self) -> None:
        """Write the complete output in the order of the input, and remove `OUT.partial`."""
        assert self.count == self.rows
        write_atomic(self.out, self._ordered_lines())
        self.path.unlink()
        self.whole = True

    def _ordered_lines(self) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            for offset in self._offsets:
                if offset != NONE:
                    file.seek(offset)
                    yield file.readline()

    def _open_files(self, made: dict[str, Any]) -> None:
        """Open or create the output files, and index the output lines that exist."""
        finished, begun = self.out.exists(), self.path.exists()
        old = self._read_settings_file()
        # A process that was killed while it created the files may leave an empty OUT.partial and no OUT.made. Ignore
        # such an empty OUT.partial.
        begun = begun and bool(old or self.path.stat().st_size)
        if finished or begun:
            self._check_same_settings(old, made)
        if finished and not begun:
            with suppress(DataError):
                self._index_complete_output()
            if self.count != self.rows:
                self._raise_settings_changed(
                    f"the complete output was changed: {self.count} of {self.rows} lines are valid"
                )
            self.whole = True
            return
        self._journal = Journal(self.path, patience=SYNC_SECONDS)
        if old != made:
            write_json(self.made_file, made)
        self._index(self._journal.read())

    def _index_complete_output(self) -> None:
        self._index(scan_journal(self.out))

    def _index(self, records: Iterable[tuple[str, int, Mapping[str, Any]]]) -> None:
        for where, offset, record in records:
            line = record.get("line")
            if not isinstance(line, int) or not 0 < line < len(self._offsets) or self.has_answer(line):
                self._raise_settings_changed(f"{where} is not the answer to a row")
            self._index_record(offset, record)

    def _index_record(self, offset: int, record: Mapping[str, Any]) -> None:
        self._offsets[record["line"]] = offset
        self.count += 1
        self.errors += "error" in record
        self.sure += record.get("sure") is True

    def _read_settings_file(self) -> dict[str, Any]:
        try:
            made = json.loads(self.made_file.read_bytes())
        except (OSError, ValueError):
            return {}
        return made if isinstance(made, dict) else {}

    def _check_same_settings(self, old: dict[str, Any], made: dict[str, Any]) -> None:
        if not old:
            self._raise_settings_changed(
                f"the file exists, but {self.made_file.name}, which records its input and settings, is missing"
            )
        differs = sorted(key for key in old.keys() | made.keys() if old.get(key) != made.get(key))
        if differs:
            shown = ", ".join(f"{key} was {_short(old.get(key))} and is {_short(made.get(key))}" for key in differs[:4])
            self._raise_settings_changed(f"the output was started with a different input or settings: {shown}")

    def _raise_settings_changed(self, what: str) -> NoReturn:
        names = f"{self.out.name}, {self.path.name} and {self.made_file.name}"
        raise ConfigError(
            what,
            where=str(self.out),
            remedy=f"Choose another out=, restore the old settings, or remove {names} to start again.",
        )


class CsvOutput(PartialOutput):
    """An unfinished output file whose complete form is a CSV table: the columns of the output lines, without the line number.

    Values that are not text, such as errors, are written as JSON, and a missing value as an empty cell. The table has the dialect of
    the file `like`, if that is a table with the same ending.
    """

    def __init__(self, out: Path, made: Mapping[str, Any], *, rows: int, last: int, like: Path) -> None:
        self.dialect = dialect_like(like, out)
        super().__init__(out, made, rows=rows, last=last)

    def _ordered_lines(self) -> Iterator[bytes]:
        names = [
            *dict.fromkeys(name for line in super()._ordered_lines() for name in json.loads(line) if name != "line")
        ]
        rows = map(json.loads, super()._ordered_lines())
        cells = ([_cell(row.get(name)) for name in names] for row in rows)
        yield from csv_lines(chain([names], cells), self.dialect)

    def _index_complete_output(self) -> None:
        for row in read_rows(self.out):
            self.count += 1
            self.errors += bool(row.values.get("error"))
            self.sure += row.values.get("sure") == "true"


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def unanswered_rows(output: PartialOutput, prompts: PromptFile) -> Iterator[tuple[int, dict[str, Any] | RefusedRow]]:
    """Yield (number, row) for each row of the prompt file that has no answer in the output. Raises DataError if the file grew."""
    for line, row in read_prompts(prompts.path):
        if line > prompts.last:
            raise DataError("the file grew while it was read", where=str(prompts.path), remedy=CHANGED)
        if not output.has_answer(line):
            yield line, row


def answer_rows(
    output: PartialOutput,
    prompts: PromptFile,
    records_of: Callable[
        [Iterator[tuple[int, dict[str, Any] | RefusedRow]]], Iterable[Mapping[int, Mapping[str, Any]]]
    ],
    *,
    quiet: bool,
    pace: Callable[[], str] = lambda: "",
) -> list[str]:
    """Write the output records of all rows that have none yet, and then the complete output. Return a text for each of the first rows
    with an error.

    `records_of` makes the records of rows, in groups that are saved together. `pace` is shown beside the progress. Raises DataError if the
    prompt file lost rows while it was read.
    """
    if output.whole:
        return ["  all lines were already complete"]
    faults: list[str] = []
    bar = None if quiet else Progress("generate", output.rows, unit="line", start=output.count)
    for lines in records_of(unanswered_rows(output, prompts)):
        output.append_records(lines)
        for line, error in ((line, record["error"]) for line, record in lines.items() if "error" in record):
            key = f"{error['key']}: " if error["key"] else ""
            faults.append(f"  line {line}: {key}{error['what']}\n    {error['remedy']}")
        if bar is not None:
            refusals = f"{output.errors:,} refused" if output.errors else ""
            bar.update(output.count, ", ".join(filter(None, (pace(), refusals))))
    if output.count != prompts.rows:
        raise DataError("the file changed while it was read", where=str(prompts.path), remedy=CHANGED)
    output.finish()
    return faults[:SHOWN]


def check_ending(out: Path, *endings: str) -> None:
    """Raise ConfigError if the name of `out` does not end in one of `endings`."""
    if out.suffix.lower() not in endings:
        raise ConfigError("unknown ending", where=str(out), remedy=f"Give out=FILE with {', '.join(endings)}.")


def check_writable_path(out: Path) -> None:
    """Raise ConfigError if the file `out` cannot be written. Call this function, which writes nothing, before loading a
    model."""
    if out.is_dir():
        raise ConfigError("out is a folder", where=str(out), remedy="Give a file: out=FILE.jsonl.")
    parent = out.absolute().parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        what = "not writable" if parent.is_dir() else "not a folder"
        raise ConfigError(f"{parent} is {what}", where=str(out), remedy="Choose another out=.")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 24 else text[:20] + "..."
