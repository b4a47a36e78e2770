"""Look at the replies of the runs of benchmarks/teach.py: which examples does the taught model get wrong?

    python benchmarks/teach_replies.py FOLDER...

Each FOLDER holds runs such as banking77-3-10. The result is docs/results/teach-replies.json.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from record import ROOT

from rorqual.core.records import read_lines, write_json
from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.tasks.base import Verdict
from rorqual.teach.answer_format import derivation
from rorqual.teach.examples import Example
from rorqual.teach.place import AFTER, TeachPaths

FEW, SOME = 3, 6
"""Labels are grouped by their number of training examples: at most `FEW`, at most `SOME`, more."""


def runs_of(folders: Sequence[Path], case: str) -> Iterator[tuple[TeachPaths, Sequence[GradedSample]]]:
    """Yield each ten-minute run of a case, and the taught model's replies on the test split."""
    for folder in folders:
        for path in sorted(folder.glob(f"{case}-*-10/run")):
            paths = TeachPaths(path)
            yield paths, Evaluation.load(paths.evaluation(AFTER)).samples


def shares(verdicts: dict[str, list[bool]]) -> dict[str, Any]:
    return {name: {"right": sum(all_) / len(all_), "examples": len(all_)} for name, all_ in sorted(verdicts.items())}


def labels(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the accuracy by the number of training examples of the right label."""
    verdicts = defaultdict(list)
    for paths, samples in runs_of(folders, "banking77"):
        counts = Counter(row["completion"] for row in read_lines(paths.data / "train.jsonl"))
        for one in samples:
            number = counts[one.answer]
            group = f"at most {FEW}" if number <= FEW else f"{FEW + 1} to {SOME}" if number <= SOME else "more"
            verdicts[group].append(one.verdict is Verdict.RIGHT)
    return shares(verdicts)


def fields(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the shares of right intents, of found slots, and of replies with a value that is not in the request."""
    intents, slots, invented = [], [], []
    for _, samples in runs_of(folders, "snips"):
        for one in samples:
            reply, gold = json.loads(one.reply), json.loads(one.answer)
            values = {name: str(value).strip().lower() for name, value in reply.get("slots", {}).items()}
            intents.append(reply.get("intent") == gold["intent"])
            slots += [values.get(name) == str(value).lower() for name, value in gold["slots"].items()]
            invented.append(any(value not in one.prompt.lower() for value in values.values()))
    named = {"intents": intents, "slots": slots, "replies with a value that is not in the request": invented}
    return {name: sum(all_) / len(all_) for name, all_ in named.items()}


def problems(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the accuracy by whether one calculation with two numbers of the problem gives the answer."""
    verdicts = defaultdict(list)
    for _, samples in runs_of(folders, "svamp"):
        for one in samples:
            single = derivation(Example(line=1, prompt=one.prompt, answer=one.answer))
            verdicts["one calculation" if single else "others"].append(one.verdict is Verdict.RIGHT)
    return shares(verdicts)


def main() -> None:
    folders = [Path(word) for word in sys.argv[1:]]
    if not folders:
        sys.exit(__doc__)
    found = {"banking77": labels(folders), "snips": fields(folders), "svamp": problems(folders)}
    write_json(
        ROOT / "docs" / "results" / "teach-replies.json",
        {"command": "python benchmarks/teach_replies.py FOLDER", **found},
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
