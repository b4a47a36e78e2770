"""Look at the replies of the runs of benchmarks/teach.py: which examples does the taught model get wrong?

    python benchmarks/teach_replies.py FOLDER...

Each FOLDER holds runs such as banking77-3-10. The result is docs/results/teach-replies.json. Cases without runs keep their result.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from record import ROOT

from rorqual.core.journal import read_lines
from rorqual.core.records import write_json
from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.tasks.task import Verdict
from rorqual.teach.answer_format import derive_worked_solution
from rorqual.teach.examples import Example
from rorqual.teach.paths import TeachPaths
from rorqual.teach.rungs.language_model import TAUGHT

FEW, SOME = 3, 6
"""Labels are grouped by their number of training examples: none, at most `FEW`, at most `SOME`, more."""
Run = tuple[TeachPaths, Sequence[GradedSample]]


def runs_of(folders: Sequence[Path], case: str) -> dict[str, Run]:
    """Return each ten-minute run of a case by its name, with the taught model's replies on the test split."""
    found = {}
    for path in (path for folder in folders for path in folder.glob(f"{case}-*-10/run")):
        paths = TeachPaths(path)
        found[path.parent.name] = paths, Evaluation.load(paths.evaluation_file(TAUGHT)).samples
    return dict(sorted(found.items()))


def shares(values: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    """Return the share and the number of each group's values."""
    return {name: {"share": sum(all_) / len(all_), "of": len(all_)} for name, all_ in sorted(values.items())}


def labels(runs: Iterable[Run]) -> dict[str, Any]:
    """Return the accuracy by the number of training examples of the right label."""
    verdicts = defaultdict(list)
    for paths, samples in runs:
        counts = Counter(row["completion"] for row in read_lines(paths.data / "train.jsonl"))
        for one in samples:
            number = counts[one.answer]
            group = f"1 to {FEW}" if number <= FEW else f"{FEW + 1} to {SOME}" if number <= SOME else "more"
            verdicts[group if number else "none"].append(one.verdict is Verdict.RIGHT)
    return shares(verdicts)


def fields(runs: Iterable[Run]) -> dict[str, Any]:
    """Return the shares of right intents and slots, and of replies with each kind of error, which may have several."""
    found = defaultdict(list)
    for _, samples in runs:
        for one in samples:
            reply, gold = json.loads(one.reply), json.loads(one.answer)
            own, right = (
                {name: " ".join(str(value).lower().split()) for name, value in slots.items()}
                for slots in (reply.get("slots", {}), gold["slots"])
            )
            found["right intents"].append(reply.get("intent") == gold["intent"])
            found["right slots"] += [own.get(name) == value for name, value in right.items()]
            found["replies with a slot too many"].append(bool(own.keys() - right.keys()))
            found["replies with a missing slot"].append(bool(right.keys() - own.keys()))
            found["replies with another value"].append(any(own[name] != right[name] for name in own.keys() & right))
            prompt = " ".join(one.prompt.lower().split())
            found["replies with a value that is not in the request"].append(any(v not in prompt for v in own.values()))
    return shares(found)


def problems(runs: Iterable[Run]) -> dict[str, Any]:
    """Return the accuracy by whether exactly one calculation with two numbers of the problem gives the answer."""
    verdicts = defaultdict(list)
    for _, samples in runs:
        for one in samples:
            single = derive_worked_solution(Example(line=1, prompt=one.prompt, answer=one.answer))
            verdicts["one calculation" if single else "others"].append(one.verdict is Verdict.RIGHT)
    return shares(verdicts)


def main() -> None:
    folders = [Path(word) for word in sys.argv[1:]]
    if not folders:
        sys.exit(__doc__)
    result = ROOT / "docs" / "results" / "teach-replies.json"
    found: dict[str, Any] = json.loads(result.read_bytes()) if result.is_file() else {}
    found["command"] = "python benchmarks/teach_replies.py FOLDER"
    for case, look in (("banking77", labels), ("snips", fields), ("svamp", problems)):
        if runs := runs_of(folders, case):
            found[case] = {"runs": [*runs], **look(runs.values())}
    write_json(result, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
