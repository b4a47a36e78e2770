"""Tune a model on replies in two styles through the fine-tuning API, then on preference pairs: do held-out replies change as preferred?

    python benchmarks/preferred.py RUN DATA --work FOLDER [--rows 150] [--pairs 100] [--epochs 3] [--seed 1]

RUN is the run of SmolLM2-135M-Instruct, and DATA a folder with banking77. Each of five intents has one sentence that answers it. Half of
the supervised replies begin with an apology, and the others end with an offer. The pairs prefer the offer for other messages. OpenAI's
package creates three jobs: supervised, dpo on the base, and dpo on the supervised model. Then it asks each model for the first 100 test
messages. The result is docs/results/preferred.json: how many replies have the preferred style, and how many answer the right intent.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

from record import ROOT, made_by
from tuned import INTENTS, create
from tuned_server import BASE, TuneServer, tuning

from rorqual.core.records import write_json
from teach import banking

RESULT = ROOT / "docs" / "results" / "preferred.json"
APOLOGY, OFFER = "I am sorry to hear that. ", " Can I help with anything else?"
ANSWERS = {
    "card_arrival": "A new card arrives within ten working days.",
    "lost_or_stolen_card": "Block the card in the app, and we will send a new one.",
    "change_pin": "You can change your PIN at any cash machine.",
    "exchange_rate": "We use the rate of the moment at which you pay.",
    "top_up_failed": "Wait for an hour, and then top up once more.",
}
TESTED = 100
Row = dict[str, Any]


def asked(row: Row) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["text"]}]


def reply(row: Row, apology: bool) -> dict[str, str]:
    answer = ANSWERS[row["category"]]
    return {"role": "assistant", "content": APOLOGY + answer if apology else answer + OFFER}


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers(server: TuneServer, model: str, rows: list[Row]) -> list[str]:
    """Return the greedy replies of a model, through OpenAI's package."""
    found = []
    for row in rows:
        messages: Any = asked(row)
        done = server.client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=48)
        found.append(done.choices[0].message.content or "")
    return found


def counted(replies: list[str], rows: list[Row]) -> dict[str, Any]:
    """Return how many replies are in the preferred style, in the other, and how many answer the right intent."""
    return {
        "preferred style": sum(text.endswith(OFFER) and not text.startswith(APOLOGY) for text in replies),
        "other style": sum(text.startswith(APOLOGY) for text in replies),
        "right answer": sum(ANSWERS[row["category"]] in text for text, row in zip(replies, rows, strict=True)),
        "preferred and right": sum(
            text == reply(row, False)["content"] for text, row in zip(replies, rows, strict=True)
        ),
        "first replies": replies[:6],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "data"):
        parser.add_argument(name, type=lambda text: Path(text).absolute())
    parser.add_argument("--work", type=lambda text: Path(text).absolute(), required=True)
    for name, default in (("rows", 150), ("pairs", 100), ("epochs", 3), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    train, test = banking(given.data, INTENTS)
    random.Random(given.seed).shuffle(train)
    random.Random(0).shuffle(test)
    test = test[:TESTED]
    given.work.mkdir(parents=True, exist_ok=True)
    told = [{"messages": [*asked(row), reply(row, bool(i % 2))]} for i, row in enumerate(train[: given.rows])]
    pairs = [
        {
            "input": {"messages": asked(row)},
            "preferred_output": [reply(row, False)],
            "non_preferred_output": [reply(row, True)],
        }
        for row in train[given.rows : given.rows + given.pairs]
    ]
    found: Row = {}
    with tuning(given.run, given.work / "server") as server:
        replies_file = server.upload(write(given.work / "replies.jsonl", told))
        pairs_file = server.upload(write(given.work / "pairs.jsonl", pairs))

        def tuned(name: str, kind: str, base: str, file: str) -> str:
            method = {"type": kind, kind: {"hyperparameters": {"n_epochs": given.epochs}}}
            job, _ = create(server, {"training_file": file}, model=base, seed=given.seed, suffix=kind, method=method)
            found[name] = job | counted(answers(server, job["model"], test), test)
            return str(job["model"])

        found["base"] = counted(answers(server, BASE, test), test)
        supervised = tuned("supervised", "supervised", BASE, replies_file)
        tuned("dpo", "dpo", BASE, pairs_file)
        tuned("supervised, then dpo", "dpo", supervised, pairs_file)
    made = made_by({given.run: "RUN", given.data: "DATA", given.work: "FOLDER"})
    sizes = {"replies": len(told), "pairs": len(pairs), "tested": len(test), "intents": INTENTS}
    write_json(RESULT, {**sizes, "models": found, "made by": made})
    print(json.dumps({name: one["preferred style"] for name, one in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
