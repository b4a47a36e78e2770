"""Each page and each long text as a whole: what a reader sees, and the data of its charts, is what tests/report/pages/ holds.

`python tests/report/test_whole_pages.py` writes the files anew. Whoever runs it reads the difference: each changed line is something
that users see.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1]))
import page_inputs as inputs
from page_inputs import BASELINES, evaluation

from in_process import output_of
from quickstart_folder import write_folder, write_students
from rorqual.cli.inspecting import InspectSettings, align_columns, find_model, model_size_rows
from rorqual.cli.plan_answer import plan_text
from rorqual.cli.plan_page import serving_charts, training_charts
from rorqual.cli.planning import ServePlanSettings, TrainPlanSettings, plan_serving, plan_training
from rorqual.cli.settings import parse_settings
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.attention_page import attention_page, needles_chart, report_as_text
from rorqual.evals.cascade_page import cascade_page, cascade_table, cost_chart
from rorqual.evals.compute import compute_table
from rorqual.evals.compute_page import compute_page
from rorqual.evals.results import compare
from rorqual.evals.table import rules_table, table, unmarked_replies_note
from rorqual.evals.trace_page import build_trace
from rorqual.evals.votes import rule_results
from rorqual.factory.card import write_card
from rorqual.factory.card_charts import charts as card_charts
from rorqual.lab.experiment_run import plan_within_budget, shared_runs
from rorqual.lab.find import EXPERIMENTS
from rorqual.lab.finding import Finding
from rorqual.lab.page import page_text
from rorqual.recipes.quickstart.charts import charts as quickstart_charts
from rorqual.recipes.quickstart.findings import read_findings
from rorqual.recipes.quickstart.report import report_text
from rorqual.report.chart import Chart
from rorqual.teach.check import check_file, training_cost_sentence
from rorqual.teach.check_page import check_page, check_text, lengths_chart, to_json
from rorqual.teach.config import TeachConfig
from rorqual.teach.dataset import Dataset
from rorqual.teach.failures import failures_text
from rorqual.teach.report import results_chart, write_report
from rorqual.teach.rungs.language_model import TAUGHT

PAGES = Path(__file__).parent / "pages"
RESULTS = Path(__file__).parents[2] / "docs" / "results"
Parts = Iterable[Any]
"""The parts of a golden file: HTML pages, texts, charts and JSON values."""


class Reader(HTMLParser):
    """What a reader sees of a page: its text with cells (`|`, or `|:` if aligned to the left), the classes that colour it, descriptions of
    pictures, and data of scripts."""

    BREAKS = set("title h1 h2 h3 p div tr dt dd summary pre nav li figure figcaption section".split())  # noqa: SIM905

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = self.data = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.data, self.hidden = "type" in given, tag in ("style", "script")
        self.parts += ["\n"] * (tag in self.BREAKS) + [" | "] * (tag in ("td", "th", "small"))
        self.parts += [": "] * ("text" in str(given.get("class")).split())
        names = ("aria-label", "alt", "title", "open") + ("class", "style") * (tag in ("span", "dd", "i", "p"))
        if shown := [f"{given[name] or name}" for name in names if name in given]:
            self.parts.append(f"[{', '.join(shown)}] ")

    def handle_endtag(self, tag: str) -> None:
        self.data = self.hidden = False

    def handle_data(self, data: str) -> None:
        self.parts.append(layout(json.loads(data)) if self.data else "" if self.hidden else data)

    def text(self) -> str:
        lines = (" ".join(line.split()) for line in "".join(self.parts).split("\n"))
        return "\n".join(line for line in lines if line)


def layout(value: Any, indent: str = "") -> str:
    """JSON as lines "key: value". A list without objects is one line."""
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict) for one in value)):
        pairs = value.items() if isinstance(value, dict) else [("-", one) for one in value]
        return "".join(f"\n{indent}{key}: {layout(one, indent + '  ')}" for key, one in pairs)
    return json.dumps(value, ensure_ascii=False)


def text_of(part: Any) -> str:
    """The text of a part. Floats of charts and JSON have six digits, because the digits beyond depend on the machine."""
    if isinstance(part, str):
        return Reader(part).text() if part.startswith("<!doctype html>") else part.strip("\n")
    if isinstance(part, Chart):
        part = {"chart": part.model_dump(mode="json", exclude_defaults=True)}
    return layout(json.loads(json.dumps(part), parse_float=lambda digits: float(f"{float(digits):.6g}")))


def read(*paths: Path) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in paths]


def lab_finding(_: Path) -> Parts:
    stored = Finding.load(RESULTS / "lab" / "latent-vs-full.json")
    return page_text(stored), page_text(inputs.finding())


def lab_plans(out: Path) -> Parts:
    for experiment in EXPERIMENTS.values():
        seeds = tuple(range(experiment.first_seed, experiment.first_seed + 2))
        full = plan_within_budget(experiment, out, seeds, 0)
        part = plan_within_budget(experiment, out, seeds, full.estimated_core_seconds / 60 / 3)
        jobs = [f"{seed} {name}: {job.estimate:.1f} s, {part.jobs[seed, name].estimate:.1f} s, after {', '.join(sorted(job.needs)) or '-'}"
                for (seed, name), job in full.jobs.items() if seed == seeds[0]]  # fmt: skip
        head = (
            f"{experiment.name}: {experiment.title}\n{experiment.claim} ({experiment.source})\n{experiment.seeds} seeds"
        )
        core_seconds = f"{full.estimated_core_seconds:.1f} core-seconds of two seeds, share {part.share}"
        yield "\n".join([head, core_seconds, *jobs, f"{shared_runs(full)}"])


def results(out: Path) -> Parts:
    before = evaluation("small", {"add 1": "rwWuwr", "add 10": "wwwwWr", "sort": "R"})
    after = evaluation(
        "large", {"add 1": "rRRrwr", "add 10": "rrwrww", "sort": "W"}, shift=2, thinking="on", system="Be brief."
    )
    seeds = [[evaluation(name, {"f 1": letters[at:] + "w" * at}, shift=at, training_seed=at) for at in range(5)]
             for name, letters in (("a", "rwwrwwwwrwww"), ("b", "rrwrrrrwrrru"))]  # fmt: skip
    texts = [inputs.text_loss("plain", (2.0, 2.5, 1.5, 2.25)), inputs.text_loss("tuned", (1.5, 2.25, 1.25, 2.0))]
    several = evaluation("twice", {"f 1": "rwwrww"}, n=2), evaluation("again", {"f 1": "rrwrww"}, n=2)
    cases = (
        compare(before, after, grain="level"), compare(before, after, grain="all", confidence=0.9), compare(*seeds, names=("A", "B")),
        compare(*texts), compare(*several), compare(texts, [inputs.text_loss("other", (1.0, at, 1.5, at)) for at in (1.75, 2.25)]),
    )  # fmt: skip
    for one in cases:
        one.to_json(out / "r.json")
        one.to_latex(out / "r.tex")
        one.page(out / "r.html")
        yield from (*read(out / "r.html", out / "r.tex"), json.loads(read(out / "r.json")[0]), one.chart(), str(one))


def evaluations(_: Path) -> Parts:
    one = evaluation("m", {"add 1": "rWuRww", "add 10": "rrrrrr", "sort": "Rr"}, baselines=BASELINES)
    many = evaluation("many", {"add": "rwuRwwrrwrrwuuuu"}, n=4, stop_when="settled", thinking="on")
    for each in (one, evaluation("one row", {"add 1": "u"}), many):
        yield from (table(each), unmarked_replies_note({"before": each, "after": one}))
    yield from (rules_table("rules", rule_results(many)), inputs.text_loss("m", (2.0, 2.5)).report())


def teach(out: Path) -> Parts:
    paths, examples = (
        inputs.write_teach_folder(out),
        check_file(inputs.write_examples(out / "rows.jsonl"), len).examples,
    )
    dataset = Dataset(
        {"train": examples[:30], "dev": examples[30:36], "test": examples},
        "label",
        examples,
        np.ones(len(examples), np.int64),
        {"duplicate": 3},
        2,
    )
    found = inputs.teach_results(TAUGHT, "logistic regression", asked=0.9)
    yield write_report(paths, TeachConfig(file="data/rows.jsonl"), dataset, found, "SmolLM2")
    yield from (*read(paths.report), json.loads(read(paths.results)[0]), results_chart(found))
    for others, openings in (
        (inputs.teach_results("majority", TAUGHT), 1),
        (inputs.teach_results("majority", TAUGHT, forced=True, threshold=None), 3),
        (inputs.teach_results(TAUGHT, "majority", asked=0.9, threshold=None), 2),
        (inputs.teach_results(TAUGHT, "majority", asked=0.9, threshold=0.99), 1),
    ):
        yield from others.sentences(openings)
    answers = {
        "label": ("l1", "l2"),
        "number": ("no", "12"),
        "JSON": ('{"a":{"b":1},"c":null}', '{"a":{"b":2},"d":[1]}'),
    }
    for kind, replies in answers.items():
        sides = [evaluation(reply, {"all": letters}) for reply, letters in zip(replies, ("rwwrw", "rrwwr"))]
        replied = [side.model_copy(update={"samples": tuple(one.model_copy(update={"reply": side.model, "answer": replies[0]})
                                                            for one in side.samples)}) for side in sides]  # fmt: skip
        yield failures_text(*replied, kind, count=1)  # type: ignore[arg-type]


def check(out: Path) -> Parts:
    numbers = [{"question": f"{at}+1?", "answer": "none" if at == 3 else at + 1} for at in range(6)]
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a?"},
        {"role": "assistant", "content": "b"},
    ]
    test = [{"text": f"the pin number {number} is lost{end}", "label": "l1"} for number, end in ((16, ""), (36, "!"))]
    for name, rows in (("numbers", numbers), ("talk", [{"messages": turns}]), ("test", test)):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    inputs.write_examples(out / "rows.jsonl")
    for name in ("rows", "numbers", "talk"):
        found = check_file(out / f"{name}.jsonl", len, against=out / "test.jsonl" if name == "rows" else None)
        cost = training_cost_sentence(find_model("qwen3-0.6b"), found.lengths)
        texts = check_text(found, "bytes"), check_text(found, "tokens", splits=False), cost
        yield from (check_page(found, "bytes"), lengths_chart(found.lengths, "bytes"), *texts, to_json(found))


PLANS = (
    "deepseek-v3 --train tokens=14.8T hardware=h800 n=2048",
    "deepseek-v3 --train tokens=14.8T hardware=h800 n=2048 pp=16 ep=64 recompute=none mtp=true full_attention=true microbatch=2",
    "qwen3-0.6b --train tokens=20B hardware=h100 n=8 utilisation=0.3 price=1.5 precision=fp8 dp=8 zero=0 recompute=full",
    "qwen3-0.6b --train tokens=1B hardware=rtx4090 n=2 microbatch=2 context=2k",
    "deepseek-v3 --serve hardware=h800 n=144 margin=0.5",
    "qwen3-8b --serve hardware=h100 dtype=bf16 prompt=500 reply=250 hit_rate=0.25 busy=0.5 price=3 margin=0 batch=8 n=2",
)


def plan(out: Path) -> Parts:
    for words in PLANS:
        name, kind, *keys = words.split()
        model, train = find_model(name), kind == "--train"
        chosen = {"train": train, "serve": not train, "published": False, "tables": False}
        yield from (
            plan_text(name, keys, **chosen),
            plan_text(name, [*keys, f"out={out}"], **chosen),
            *read(out / "plan.html"),
        )
        if train:
            settings = parse_settings(TrainPlanSettings, keys)
            yield from training_charts(model, settings, plan_training(model, settings), is_v3=name == "deepseek-v3")
        else:
            serving = parse_settings(ServePlanSettings, keys)
            yield from serving_charts(serving, plan_serving(model, serving))
    yield from (output_of("plan", "--published"), output_of("plan", "--tables"))


def plan_of_a_run(out: Path) -> Parts:
    run = {
        "recipe": "sft",
        "steps": 50,
        "source": {"row": 96},
        "model": json.loads(find_model("qwen3-0.6b").model_dump_json()),
    }
    (out / "run.yaml").write_text(json.dumps(run), encoding="utf-8")
    steps = [
        {"seconds": 0.5 + at % 3 / 10, "core_seconds": 1.0, "tokens": 1000, "sampled_tokens": 50, "flops": 10**9}
        for at in range(45)
    ]
    for last in (45, 50):
        (out / "metrics.jsonl").write_text(
            "".join(json.dumps(step) + "\n" for step in (steps * 2)[:last]), encoding="utf-8"
        )
        for keys in ([], ["steps=100", "core_hour=0.5"], ["tokens=2M", "model=qwen3-8b"]):
            yield output_of("plan", str(out), *keys)


def inspect(_: Path) -> Parts:
    for name in ("deepseek-v3", "qwen3-0.6b", "deepseek-v2-lite"):
        for settings in (InspectSettings(), InspectSettings(dtype="float32", context=100)):
            yield align_columns(model_size_rows(find_model(name), settings, 2**33))


def cascades(_: Path) -> Parts:
    for one in map(inputs.cascade, (True, False)):
        yield from (cascade_page(one), cascade_table(one), cost_chart(one))


def compute(_: Path) -> Parts:
    report = inputs.compute_report()
    return compute_page(report, Tokenizer.byte_level()), compute_table(report), report.to_json()


def attention(_: Path) -> Parts:
    report, bare = map(inputs.attention_report, (True, False))
    exceeded = report.exceeded({"kl": 0.01, "changed": 0.5, "lost": 0.0})
    return (
        attention_page(report, exceeded),
        report_as_text(report),
        needles_chart(report),
        attention_page(bare, []),
        report.to_json()["summaries"],
    )


def trace(out: Path) -> Parts:
    return read(build_trace(inputs.write_trace_run(out)), build_trace(out, text_steps=2))


def card(out: Path) -> Parts:
    for findings in map(inputs.card_findings, (True, False)):
        write_card(out, findings)
        yield from (*read(out / "card.html", out / "card.md"), *card_charts(findings.rows))


def quickstart(out: Path) -> Parts:
    for findings in (read_findings(write_folder(out, 24)), read_findings(write_students(out, 24))):
        yield from (report_text(findings, {}), *quickstart_charts(findings))


CASES = {case.__name__: case for case in (
    lab_finding, lab_plans, results, evaluations, teach, check, plan, plan_of_a_run, inspect, cascades, compute, attention, trace, card,
    quickstart,
)}  # fmt: skip


def golden(name: str, out: Path) -> str:
    text = "\n\n----\n\n".join(map(text_of, CASES[name](out)))
    return text.replace(str(out), "FOLDER").replace(out.name, "FOLDER") + "\n"


@pytest.mark.parametrize("name", CASES)
def test_a_whole_page_is_what_readers_saw_before(name: str, tmp_path: Path) -> None:
    shown = golden(name, tmp_path).split("\n")
    stored = (PAGES / f"{name}.txt").read_text(encoding="utf-8").split("\n")
    assert shown == stored, f"If all changed lines are right: python {__file__}"


if __name__ == "__main__":
    PAGES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or CASES:
        with TemporaryDirectory() as folder:
            (PAGES / f"{name}.txt").write_text(golden(name, Path(folder)), encoding="utf-8")
