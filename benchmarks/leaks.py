"""Insert leaks into files of real rows, and count the files whose leaking lines `rorqual check` names.

    python benchmarks/leaks.py DATA

DATA holds banking77/train.csv, snips/train.jsonl, svamp/examples.jsonl and gsm8k/train.jsonl. Twenty pairs of a train and a test file of 200
to 1,000 rows are made clean by a plain rule, which shares no code with `rorqual check`: all pairs of rows are compared exactly. Then each
train file gets leaks of one kind. A file counts as found if `rorqual check` names all leaking lines with the right kind, and no other line.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from record import ROOT, core_seconds, made_by

from rorqual.core.records import write_json

RESULT = ROOT / "docs" / "results" / "leaks.json"
SIMILAR = 0.8
STATED = 0.95
"""Share of the prompts that state their label as a word."""
EACH = 5
"""Number of files per kind of leak."""


class Row(NamedTuple):
    """A prompt and its answer."""

    prompt: str
    answer: str


class Source(NamedTuple):
    """A data set: its file, its columns, and whether its answers are labels."""

    file: str
    prompt: str
    answer: str
    labels: bool


SOURCES = {
    "banking77": Source("banking77/train.csv", "text", "category", True),
    "snips": Source("snips/train.jsonl", "text", "intent", True),
    "svamp": Source("svamp/examples.jsonl", "question", "answer", False),
    "gsm8k": Source("gsm8k/train.jsonl", "question", "answer", False),
}


# ---- the plain rule


class Plain:
    """A prompt for exact comparison: its text without case and extra white space, its numbers, and its character 5-grams."""

    def __init__(self, prompt: str) -> None:
        self.text = re.sub(r"\s+", " ", prompt.strip()).lower()
        self.numbers = tuple(re.findall(r"\d+(?:[.,]\d+)*", self.text))
        self.grams = {self.text[at : at + 5] for at in range(len(self.text) - 4)} or {self.text}

    def near(self, other: Plain) -> bool:
        """Return whether the texts are equal, or have the same numbers and a Jaccard similarity of at least `SIMILAR`."""
        if self.text == other.text:
            return True
        shared = len(self.grams & other.grams)
        return self.numbers == other.numbers and shared / (len(self.grams) + len(other.grams) - shared) >= SIMILAR


def clean(pool: Sequence[Row], count: int, *, labels: bool) -> list[Row]:
    """Return the first `count` rows that are not near an earlier one, and state no answer."""
    words = {row.answer.lower() for row in pool} if labels else set()
    kept: list[Row] = []
    known: list[Plain] = []
    for row in pool:
        plain = Plain(row.prompt)
        states = ("label:", "answer:", *words)
        if any(word in plain.text for word in states) or any(plain.near(other) for other in known):
            continue
        kept.append(row)
        known.append(plain)
        if len(kept) == count:
            break
    return kept


# ---- leaks: each returns the rows of the train file, and the places of those that leak

Leaky = tuple[list[Row], set[int]]


def insert(train: Sequence[Row], leaks: Sequence[Row], rng: random.Random) -> Leaky:
    """Insert rows at random places."""
    places = set(rng.sample(range(len(train) + len(leaks)), len(leaks)))
    own, inserted = iter(train), iter(leaks)
    return [next(inserted if place in places else own) for place in range(len(train) + len(leaks))], places


def exact(train: list[Row], test: list[Row], rng: random.Random, *, labels: bool) -> Leaky:
    """Insert copies of test rows."""
    return insert(train, rng.sample(test, len(test) // 5), rng)


def block(train: list[Row], test: list[Row], rng: random.Random, *, labels: bool) -> Leaky:
    """Insert half of the test file in one piece."""
    place, size = rng.randrange(len(train)), len(test) // 2
    return [*train[:place], *test[:size], *train[place:]], set(range(place, place + size))


def near(train: list[Row], test: list[Row], rng: random.Random, *, labels: bool) -> Leaky:
    """Insert changed copies of test rows, and of some rows two. Each copy is near its own test row only, by the plain rule."""
    known, words = [Plain(row.prompt) for row in train], " ".join(row.prompt for row in train).split()
    leaks = []
    for row in rng.sample(test, len(test) // 5):
        for _ in range(rng.choice([1, 1, 2])):
            for _ in range(20):
                prompt = edited(row.prompt, words, rng)
                copy = Plain(prompt)
                if prompt != row.prompt and copy.near(Plain(row.prompt)) and not any(map(copy.near, known)):
                    leaks.append(Row(prompt, row.answer))
                    break
    return insert(train, leaks, rng)


def edited(prompt: str, words: Sequence[str], rng: random.Random) -> str:
    """Change a prompt one to three times: its case, its last mark, one word, or a "please"."""
    for _ in range(rng.randint(1, 3)):
        parts = prompt.split()
        parts[rng.randrange(len(parts))] = rng.choice(words)
        prompt = rng.choice(
            [
                prompt.upper(), prompt.lower(), prompt.title(), " ".join(parts), f"Please, {prompt}", f"{prompt} please",
                prompt.rstrip(".?! "), prompt.rstrip(".?! ") + rng.choice(["!", " ?", "...", "?!"]),
            ]
        )  # fmt: skip
    return prompt


def stated(train: list[Row], test: list[Row], rng: random.Random, *, labels: bool) -> Leaky:
    """State the answer after a mark, such as "label: X", in a share of the prompts."""
    share = rng.uniform(0.02, 0.5)

    def state(row: Row) -> str:
        answer = row.answer.rpartition("####")[2].strip()
        return rng.choice([f"{row.prompt} label: {answer}", f"Answer: {answer}. {row.prompt}"])

    return restated(train, [*train, *test], share, state, rng)


def word(train: list[Row], test: list[Row], rng: random.Random, *, labels: bool) -> Leaky:
    """Put the label as a word into nearly all prompts. Answers that are no labels are stated after a mark."""

    def state(row: Row) -> str:
        parts = row.prompt.split()
        parts.insert(rng.randint(0, len(parts)), row.answer)
        return " ".join(parts)

    return restated(train, [*train, *test], STATED, state, rng) if labels else stated(train, test, rng, labels=labels)


def restated(
    train: list[Row], others: list[Row], share: float, state: Callable[[Row], str], rng: random.Random
) -> Leaky:
    """Change the prompts of a share of the rows, but none that would then be near another row."""
    rows, places = list(train), set()
    known = [Plain(row.prompt) for row in others]
    for place in rng.sample(range(len(rows)), round(share * len(rows))):
        prompt = state(rows[place])
        plain = Plain(prompt)
        if not any(plain.near(other) for at, other in enumerate(known) if at != place):
            rows[place], known[place] = Row(prompt, rows[place].answer), plain
            places.add(place)
    return rows, places


LEAKS: dict[str, tuple[str, Callable[..., Leaky]]] = {
    "exact copies of test rows": ("test row", exact),
    "near copies of test rows": ("test row", near),
    "label in the prompt": ("answer in prompt", stated),
    "block of test rows": ("test row", block),
}


# ---- files and the verdict


def read(path: Path, source: Source) -> list[Row]:
    """Return the rows of a CSV or JSONL file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows: Any = csv.DictReader(file) if path.suffix == ".csv" else (json.loads(line) for line in file)
        return [Row(row[source.prompt].strip(), str(row[source.answer]).strip()) for row in rows]


def write(path: Path, rows: Sequence[Row], source: Source) -> list[int]:
    """Write the rows as CSV or JSONL, and return the line of each."""
    lines = []
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file, lineterminator="\n").writerow([source.prompt, source.answer])
        line = 2 if path.suffix == ".csv" else 1
        for row in rows:
            lines.append(line)
            if path.suffix == ".csv":
                csv.writer(file, lineterminator="\n").writerow(row)
                line += 1 + sum(cell.count("\n") for cell in row)
            else:
                file.write(json.dumps({source.prompt: row.prompt, source.answer: row.answer}) + "\n")
                line += 1
    return lines


def pair(pool: Sequence[Row], rng: random.Random, *, labels: bool) -> tuple[list[Row], list[Row]]:
    """Return the rows of a clean train file and of its test file."""
    size = rng.randint(200, 1000)
    rows = clean(rng.sample(list(pool), len(pool)), size + size // 4, labels=labels)
    cut = len(rows) * 4 // 5
    return rows[:cut], rows[cut:]


def faults(train: Path, test: Path) -> set[tuple[int, str]]:
    """Return the line and kind of each fault that `rorqual check` finds."""
    out = train.with_suffix(".json")
    words = [sys.executable, "-m", "rorqual", "check", str(train), f"against={test}", f"out={out}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    return {(fault["line"], fault["kind"]) for fault in json.loads(out.read_text(encoding="utf-8"))["faults"]}


def verdict(found: set[tuple[int, str]], kind: str, leaking: set[int]) -> dict[str, Any]:
    """Return the leaking lines that were not named with their kind, and the other lines that were named."""
    missed = sorted(leaking - {line for line, name in found if name == kind})
    return {"missed": missed, "others": sorted({line for line, _ in found} - leaking)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    given = parser.parse_args()
    pools = {name: read(given.data / source.file, source) for name, source in SOURCES.items()}
    files: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(EACH * len(LEAKS)):
            title, (kind, leak) = list(LEAKS.items())[number // EACH]
            name = list(SOURCES)[number % EACH % len(SOURCES)]
            source, rng = SOURCES[name], random.Random(number)
            if title == "label in the prompt" and number % EACH in (1, 4):
                title, leak = "label as a word of nearly all prompts", word
            train, test = pair(pools[name], rng, labels=source.labels)
            rows, places = leak(train, test, rng, labels=source.labels)
            paths = [Path(folder) / f"{part}{Path(source.file).suffix}" for part in ("train", "test", "leaky")]
            write(paths[0], train, source)
            write(paths[1], test, source)
            lines = write(paths[2], rows, source)
            files.append(
                {
                    "data": name, "leak": title, "train": len(train), "test": len(test), "leaking": len(places),
                    **verdict(faults(paths[2], paths[1]), kind, {lines[place] for place in places}),
                    "clean": sorted(faults(paths[0], paths[1])),
                }
            )  # fmt: skip
            print(files[-1], flush=True)
    result = made_by({given.data: "DATA"}) | {
        "found": sum(not file["missed"] and not file["others"] for file in files),
        "clean": sum(not file["clean"] for file in files),
        "leaking_lines": sum(file["leaking"] for file in files),
        "core_seconds": round(core_seconds(resource.RUSAGE_CHILDREN), 1),
        "files": files,
    }
    print({name: result[name] for name in ("found", "clean", "leaking_lines", "core_seconds")}, "of", len(files))
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
