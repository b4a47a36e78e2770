"""Small inputs of the whole pages, with values that a page finds hard: NaN, zero, one row, many rows, ungraded answers, markup."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rorqual.core.ledger import LedgerEntry
from rorqual.core.records import Message
from rorqual.data.distilled import TeacherSample
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.request import SamplingParams
from rorqual.evals.cascade import Cascade, calibrate
from rorqual.evals.compute import ComputeReport, CountedReply, TokenGroup
from rorqual.evals.damage import PassageDamage
from rorqual.evals.evaluation import Evaluation, GradedSample
from rorqual.evals.sparse_attention_damage import LayerSelection
from rorqual.evals.sparse_attention_report import Measurement, SparseAttentionReport
from rorqual.evals.stats import Interval
from rorqual.evals.text_loss import TextLoss
from rorqual.factory.budget import Spending
from rorqual.factory.card import CardFindings
from rorqual.factory.config import FactoryConfig, RemoteAccess
from rorqual.lab.finding import Contrast, Finding, contrast_of_values
from rorqual.report.chart import Chart, Series
from rorqual.report.table import Table
from rorqual.tasks.examples import OPENINGS_FILE
from rorqual.tasks.task import Problem, Verdict
from rorqual.teach.answerer import Step
from rorqual.teach.cascade import cascade_table
from rorqual.teach.held_out import HeldOut
from rorqual.teach.paths import TeachPaths
from rorqual.teach.promise import PlattCalibration, Promise
from rorqual.teach.results import TeachResults
from rorqual.teach.rungs.language_model import ALONE, TAUGHT

MARKUP = "<b>&</b>"
VERDICTS = {"r": Verdict.RIGHT, "w": Verdict.WRONG, "u": Verdict.UNGRADED}


def evaluation(model: str, cells: dict[str, str], *, n: int = 1, shift: int = 0, **given: Any) -> Evaluation:
    """Return an evaluation from cells "family level" with a letter per sample: r, w or u, and a capital letter if the model thought.
    `shift` moves all lengths and log-probabilities."""
    samples = [
        GradedSample(
            key=f"{cell}:{at // n}", family=cell.split()[0], level=" ".join(cell.split()[1:]), prompt=f"{cell} {at // n}? {MARKUP}",
            answer=f"{at // n}", reply=f"{at if letter in 'wW' else at // n} {MARKUP}",
            reasoning="so" if letter.isupper() else None, verdict=VERDICTS[letter.lower()],
            last=Verdict.RIGHT if at % 3 else Verdict.WRONG, unmarked=at % 4 == 1, prompt_tokens=7 + at, tokens=5 + at + shift,
            thinking_tokens=3 + at if letter.isupper() else 0, thought=letter.isupper(), truncated=at % 5 == 4,
            answered=None if at % 7 == 6 else letter.lower(), logprob=-(at % 6 + 1 + shift) / 5,
            score=(at % 5 - 2.0) * (1 if letter in "rR" else -1), error="timeout" if at == 5 and letter == "u" else "",
        )
        for cell, letters in cells.items()
        for at, letter in enumerate(letters)
    ]  # fmt: skip
    fields = {
        "task": "families",
        "split": "test",
        "seed": 3,
        "count": len(samples),
        "per_family": True,
        "thinking": "auto",
    }
    params = {"params": SamplingParams(n=n, temperature=0.5, max_tokens=96)}
    return Evaluation(**{"model": model, "samples": tuple(samples), **fields, **params, **given})


BASELINES = {"add": {"tree": 0.25, "majority": 0.1}, "add/1": {"majority": 0.5}, "all": {"length": 0.2}}


def finding() -> Finding:
    """A finding of two seeds and a part of the work, with a contrast of each unit."""
    values = {
        "points": (0.25, 0.5), "nats": (1.5, 1.25), "ratio": (1.0, 0.5), "bits": (0.0, 0.125), "experts": (2.0, 1.5),
        "tokens": (300.0, 200.0), "number": (12000.0, 9000.5),
    }  # fmt: skip
    contrasts = [
        Contrast(question=f"question of {unit}", a=a, b=b, difference=b - a, low=b - a - 0.1, high=b - a + 0.1,
                 by_seed=((a, b), (a, b + 0.01)), unit=unit)  # type: ignore[arg-type]
        for unit, (a, b) in values.items()
    ]  # fmt: skip
    odd = {"question": "odd", "a": 1.0, "b": 1.0, "difference": 0.0, "low": 0.0, "high": 0.0, "by_seed": ((1.0, 1.0),)}
    contrasts += [
        Contrast(**odd, of="the same in every seed"),
        contrast_of_values("odd", [[1.0, 2.0]], [[3.0, 3.0]], of="exact", unit="number", exact=True),
        Contrast(**odd | {"a": math.nan, "difference": math.nan}, of="not measured", confidence=0.9),
    ]
    return Finding(
        experiment="odd", title=f"An odd finding {MARKUP}", claim="Claim.", source="2501.12948", verdict="holds",
        headline="It held.", words=("a word",), notes=("a note",), contrasts=tuple(contrasts), seeds=(4, 5), share=0.125,
        tables=(Table(title="one row", heads=("", "x"), rows=(("group",), ("a", "● 1")), note="note of the table"),),
        charts=(Chart(name="chart", caption="caption", series=(Series(label="s", points=((0, 1), (1, 2))),)),),
        command="rorqual lab odd", made={"rorqual": "1.0"}, shared_runs={"other": ("run",), "third": ("run",)},
    )  # fmt: skip


def text_loss(model: str, losses: tuple[float, ...], seed: int | None = None) -> TextLoss:
    return TextLoss(
        model=model, text="a.txt", window=8, passages="p", losses=losses, characters=90, bytes=100, training_seed=seed
    )


def cascade(flops: bool) -> Cascade:
    """A cascade whose student is right more often where it is more likely. One answer is ungraded, and one failed."""
    letters = "rrrwwurrwwwurrrwrw"
    student, dev = (evaluation("small", {f"{split} 1": letters}, split=split) for split in ("test", "dev"))
    keys = [sample.key for sample in student.samples]
    costs = (
        {key: 1e6 * (place + 1) for place, key in enumerate(keys)},
        {key: 3e7 + 1e6 * place for place, key in enumerate(keys)},
    )
    return Cascade(
        student=student, teacher=evaluation("large", {"test 1": "rrrrrwurrrrrrrwrrr"}, shift=20), calibration=calibrate(dev),
        sure=0.55 if flops else 1.0, flops=costs if flops else None, fingerprints=("ab", "cd"),
    )  # fmt: skip


def compute_report() -> ComputeReport:
    replies = []
    for place, (family, verdict) in enumerate((("add", "r"), ("add", "w"), ("count", "u"))):
        problem = Problem(f"{family}{place}", f"{family}?", "2", family, f"{place}")
        text = Tokenizer.byte_level().encode(f"a<é\n{place}")
        parts = ("prompt", "prompt", "thinking", *["answer"] * (len(text) - 3))
        replies.append(
            CountedReply(problem, VERDICTS[verdict], tuple(text), parts, tuple(at / 2 for at in range(len(text))))
        )  # type: ignore[arg-type]
    kinds = {
        "part": ("all", "prompt", "answer"),
        "family": ("add", "count"),
        "level": ("add, 1",),
        "verdict": ("wrong",),
    }
    groups = [
        TokenGroup(kind, name, 1200, 3, 1.25, Interval(1.0, 1.5)) for kind, names in kinds.items() for name in names
    ]
    groups += [TokenGroup("token", chr(97 + at) + "\n", 10 + at, 1, at / 7, None) for at in range(14)]
    return ComputeReport("runs/m", "families", 2, 3, tuple(groups), tuple(replies))


def attention_report(planted: bool) -> SparseAttentionReport:
    """A report on two texts and, with `planted`, needles of two lengths; the long one only where a position can be missed."""
    found = []
    places: list[tuple[str, int, float | None]] = [("a.txt", 1200, None), (f"{MARKUP}.txt", 1200, None)]
    places += [("needle", length, depth) for length in (600, 1200) for depth in (0.0, 0.25, 0.5, 0.75, 1.0)] * planted
    for budget in (16, 64):
        for place, (name, length, depth) in enumerate(places):
            if (length, budget) == (600, 64):
                continue
            kl = place / budget
            passages = tuple(
                PassageDamage(40 + at, kl + at / 8, kl / 2, 0.5 - kl / 8, 0.5, 2.0 + kl, 2.0) for at in range(3)
            )
            layers = tuple(
                LayerSelection(0.5 * (place != 4), 0.75 + kl / 8, 0.5 + layer / 4, 0.625, kl) for layer in range(2)
            )
            found.append(Measurement(name, length, depth, budget, passages, layers))
    return SparseAttentionReport("runs/m", 1200, 64, (16, 64), (2048,) * planted, tuple(found))


def card_findings(remote: bool) -> CardFindings:
    """Samples of two families, kept and dropped for several reasons; of a server with a budget, or of a run without any sample."""
    given: dict[str, Any] = {"teacher": "runs/t", "task": "families"}
    if not remote:
        return CardFindings(FactoryConfig(**given), [], [LedgerEntry("sample", seconds=1.25, core_seconds=2.5)], 0, [])
    kinds = [
        ("right", ""),
        ("right", "duplicate"),
        ("wrong", "wrong"),
        ("ungraded", "ungraded"),
        ("right", ""),
        ("wrong", ""),
    ]
    rows = [
        TeacherSample(
            f"k{at // 2}", "add" if at < 8 else "sort", "1", "?", (Message("user", "?"), Message("assistant", "2")), verdict,
            "http://server", "{}", seed=at, number=at % 2, dropped=dropped, prompt_tokens=3, completion_tokens=10 + at * at,
            money=0.25, model="m-2" if at % 3 else "",
        )  # type: ignore[arg-type]
        for at, (verdict, dropped) in enumerate(kinds * 2)
    ]  # fmt: skip
    access = RemoteAccess(budget=5, price_in=1.5, price_out=2)
    config = FactoryConfig(**given | {"teacher": "http://server", "model": "m-1", "access": access, "samples": 2})
    money = Spending(5.0, 2.75, 0.5, kept=12, lost_requests=3)
    costs = [LedgerEntry("choose", seconds=0.5, core_seconds=0.75), LedgerEntry("sample", seconds=60, core_seconds=4)]
    return CardFindings(config, rows, costs, 2, [f"a note {MARKUP}"], money, 4)


def write_trace_run(folder: Path) -> Path:
    """A GRPO run of three steps. Two steps have metrics, and one group of each step has texts."""
    source = "kind: rollouts\n  task: families\n  problems: 2\n  samples: 4\n  temperature: 0.75\n  max_tokens: 96"
    (folder / "run.yaml").write_text(f"recipe: grpo\nseed: 3\nsteps: 3\nsource:\n  {source}\n", encoding="utf-8")
    lines = []
    for step in (1, 2, 3):
        for key, texts in (("1+1", {"prompt": f"1+1? {MARKUP}", "answer": "2"}), ("1+2", {})):
            replies = [
                {"verdict": verdict, "advantage": at - 1 / 3, "finish": "length" if at else "stop", "tokens": 9 + at, "thinking": 4 - at,
                 "reasoning": "so", "text": "2"}
                for at, verdict in enumerate(("right", "wrong", "ungraded"))
            ]  # fmt: skip
            lines.append({"step": step, "key": key, "family": "add", "level": "easy", "samples": replies} | texts)
    records = [{"step": step, "reward": step / 4, "entropy": 0.0, "recipe": "grpo"} for step in (1, 2)]
    for name, data in (("rollouts", lines), ("metrics", records)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in data), encoding="utf-8")
    return folder


def write_teach_folder(out: Path) -> TeachPaths:
    """The folder of a taught model: openings of the test split, reasons, and what the stages wrote."""
    paths = TeachPaths(out)
    plan = {
        "steps": 100,
        "dev_steps": [50, 100],
        "rows": 4,
        "row": 192,
        "max_tokens": 32,
        "epochs": 2.5,
        "step_seconds": 1,
    }
    opened = {"time": "2025-01-20 10:00", "command": "teach", "version": "1", "checkpoint": "0123456789abcdef"}
    files = {
        paths.reasons: {"texts": {"a": "so", "b": "so", "c": "so"}, "given": ["c"], "stopped": "The budget was reached."},
        paths.plan: plan | {"train_seconds": 100},
        paths.ended_early: {"step": 70}, paths.grpo_result: {"text": "GRPO was skipped"}, paths.memory: {"peak_bytes": 1.5e9},
        paths.dev: {"run": "sft", "step": 40, "bits": "01101000"}, paths.held_out_file(ALONE): {},
        paths.ledger: {"stage": "train", "seconds": 90.0, "core_seconds": 170.0}, paths.data / OPENINGS_FILE: opened,
    }  # fmt: skip
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    paths.settings.write_text(f"file: rows.jsonl {MARKUP}\n", encoding="utf-8")
    return paths


def teach_results(
    chosen: str, other: str, *, forced: bool = False, asked: float = 0.0, threshold: float | None = 0.6
) -> TeachResults:
    """Results of five rungs and of the base model, which was skipped or cannot be chosen. A promise needs a threshold."""
    letters = {
        "majority": "wrwwwwrwwwuw",
        "logistic regression": "rrwrwrrwrwww",
        "base model": "wrwwwrrwrwww",
        ALONE: "rrrrwrrwrrrw",
        TAUGHT: "rrRrwrRwrrrr",
    }
    held = [
        HeldOut(name, {f"{n}": letter in "rR" for n, letter in enumerate(own * (5 - place))}, {f"{n}": (n % 12) / 12 for n in range(60)},
                10.0 ** (place - 4) / 3, place * 1000.0, offered=name != "base model")
        for place, (name, own) in enumerate(letters.items())
    ]  # fmt: skip
    tested = [evaluation(name, {"card": letters[name] * 3, "pin": letters[name][::-1] * 2}) for name in (chosen, other)]
    made = threshold and Promise(accuracy=asked or 0.95, threshold=threshold, answered=30, right=29, of=48, bound=0.951)
    return TeachResults(
        held, {"language model, 2": f"rung={MARKUP}"}, *tested, forced=forced, asked=asked, possible=made or None,
        promises=[(0.8, 1.0), (0.9, 0.5)] if asked else [],
        probability={one.key: place / 60 for place, one in enumerate(tested[0].samples)}, sizes={"majority": 123, TAUGHT: 5_432_100},
        levels=[cascade_table(Step(rung="majority", calibration=PlattCalibration(), above=0.5), held[0], held[4])],
    )  # fmt: skip


def write_examples(path: Path) -> Path:
    """A file of examples with the faults that a check reports of labels."""
    rows: list[Any] = [
        {"text": f"the {'card' if at % 2 else 'pin'} number {at * at} is lost", "label": f"l{at % 14}"}
        for at in range(40)
    ]
    rows += [
        rows[3],
        rows[4] | {"label": "l9"},
        *[{"text": "", "label": "l1"}] * 5,
        {"text": "no label"},
        {"text": "x" * 300, "label": "l1"},
    ]
    rows += [{"text": "The PIN number 64 is lost!", "label": "l8"}] + [{"text": "no label"}] * 8
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
