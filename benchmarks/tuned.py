"""Tune a model through the fine-tuning API, and ask the held-out rows at the same address: are the served figures those of the report?

    python benchmarks/tuned.py RUN DATA --work FOLDER [--rows 150] [--epochs 3] [--seed 1]

RUN is the run of SmolLM2-135M-Instruct, and DATA a folder with banking77. One server tunes two models on `--rows` messages of five
intents: an adapter of RUN, and the ladder's rung without a language model. The validation file has the 200 test messages of these
intents. The result is docs/results/tuned.json: the metrics of the last checkpoint and of the ladder's report, and the same figures by
OpenAI's package. The ladder then plays the old model: its answers are the golden ones, and the right ones are `expected`.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from record import ROOT, made_by

sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "fine_tuning")]

from tuned_server import BASE, TuneServer, tuning, wait  # noqa: E402

from rorqual.core.records import Message, RunDir, write_json  # noqa: E402
from rorqual.data.chat import load_chat  # noqa: E402
from rorqual.data.tokenizer import Tokenizer  # noqa: E402
from rorqual.fine_tuning.store import JobFolder  # noqa: E402
from rorqual.teach.paths import TeachPaths  # noqa: E402
from teach import TEN, banking  # noqa: E402

RESULT = ROOT / "docs" / "results" / "tuned.json"
INTENTS = TEN[:5]
SYSTEM = "You label the messages of a bank's clients."
Row = dict[str, Any]


def write_rows(path: Path, rows: list[Row]) -> Path:
    turns = (("system", SYSTEM), ("user", "text"), ("assistant", "category"))
    lines = (
        {"messages": [{"role": role, "content": row.get(key, key)} for role, key in turns]}
        | {key: row[key] for key in ("expected",) if key in row}
        for row in rows
    )  # the system message is no column
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def create(server: TuneServer, files: dict[str, str], **more: Any) -> tuple[Row, JobFolder]:
    """Wait for a job, and return its description with its events, and its folder."""
    jobs = server.client.fine_tuning.jobs
    job = wait(server.client, jobs.create(**files, **more).id, seconds=7200)
    assert job.status == "succeeded", job.error
    events = [event.message for event in jobs.list_events(job.id, limit=10_000)]
    seconds = (job.finished_at or 0) - job.created_at
    row = {"model": job.fine_tuned_model, "seconds": seconds, "trained_tokens": job.trained_tokens, "events": events}
    return row, JobFolder(server.folder / "jobs" / job.id)


def ask(server: TuneServer, model: str, rows: list[Row]) -> list[str]:
    """Return the greedy answers of a model, through OpenAI's package."""
    found = []
    for row in rows:
        messages: Any = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["text"]}]
        reply = server.client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=16)
        found.append(reply.choices[0].message.content or "")
    return found


def served_metrics(server: TuneServer, model: str, run: Path, rows: list[Row]) -> dict[str, float]:
    """Return the mean loss and the share of right next tokens of the replies, from the served log-probabilities."""
    chat = load_chat(RunDir(run), Tokenizer.load(RunDir(run).tokenizer_file))
    losses, right = list[float](), list[bool]()
    for row in rows:
        turns = [Message("system", SYSTEM), Message("user", row["text"]), Message("assistant", row["category"])]
        rendered = chat.render(turns)
        asked: Any = {"prompt": rendered.ids, "max_tokens": 1, "logprobs": 1, "extra_body": {"prompt_logprobs": 1}}
        reply = server.client.completions.create(model=model, temperature=0, **asked)
        scored: Any = reply.choices[0].prompt_logprobs  # type: ignore[attr-defined]
        for token, in_loss, found in zip(rendered.ids, rendered.mask, scored, strict=True):
            if in_loss:
                losses.append(-found[str(token)]["logprob"])
                right.append(max(found.values(), key=lambda one: one["logprob"]) == found[str(token)])
    return {"full_valid_loss": fmean(losses), "full_valid_mean_token_accuracy": fmean(right)}


def golden(folder: Path, rows: list[Row], answers: list[str], work: Path) -> str:
    """Return what `rorqual compare golden=` prints about a model and the old `answers`, without the paths of this machine."""
    kept = [row | {"category": old, "expected": row["category"]} for row, old in zip(rows, answers, strict=True)]
    file = write_rows(work / "old.jsonl", kept)
    command = [sys.executable, "-m", "rorqual", "compare", str(folder), f"golden={file}"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    return printed[printed.index("  golden answer") :].partition("\n  Every answer")[0].rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "data"):
        parser.add_argument(name, type=lambda text: Path(text).absolute())
    parser.add_argument("--work", type=lambda text: Path(text).absolute(), required=True)
    for name, default in (("rows", 150), ("epochs", 3), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    train, test = banking(given.data, INTENTS)
    random.Random(given.seed).shuffle(train)
    given.work.mkdir(parents=True, exist_ok=True)
    paths = {
        "training_file": write_rows(given.work / "train.jsonl", train[: given.rows]),
        "validation_file": write_rows(given.work / "validation.jsonl", test),
    }
    with tuning(given.run, given.work / "server") as server:
        ids = {name: server.upload(path) for name, path in paths.items()}
        ladder, folder = create(server, ids, model="ladder", seed=given.seed, suffix="intents")
        results = json.loads(TeachPaths(folder.taught).results.read_bytes())
        ladder["reported"] = {"rung": results["chosen"], **results["test"][results["chosen"]]}
        old = ask(server, ladder["model"], test)
        ladder["served right"] = sum(text == row["category"] for text, row in zip(old, test, strict=True))
        method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": given.epochs}}}
        adapter, folder = create(server, ids, model=BASE, seed=given.seed, suffix="intents", method=method)
        last = folder.checkpoints()[-1]
        adapter["reported"] = last["metrics"]
        adapter["served"] = served_metrics(server, adapter["model"], given.run, test)
        answers = ask(server, adapter["model"], test)
        adapter["served right"] = sum(text == row["category"] for text, row in zip(answers, test, strict=True))
        adapter["compare golden="] = golden(folder.model(last["step_number"]).path, test, old, given.work)
    made = made_by({given.run: "RUN", given.data: "DATA", given.work: "FOLDER"})
    sizes = {"training rows": given.rows, "validation rows": len(test), "intents": INTENTS}
    write_json(RESULT, {**sizes, "adapter": adapter, "ladder": ladder, "made by": made})
    print(json.dumps({"adapter": adapter["served right"], "ladder": ladder["served right"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
