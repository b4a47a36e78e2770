"""What one part of the factory hands to another arrives: from the server to the row, from the disk to the next call, to the card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from distil_server import Adder, Reply, fault, says
from sums_task import SUMS, Make

from rorqual.core.config import to_yaml
from rorqual.core.errors import ConfigError, DataError, RorqualError
from rorqual.data.distilled import TeacherSample, read_distilled
from rorqual.factory import BudgetReached, FactoryConfig, FilterConfig, sample_teacher

MIXED = SUMS.replace(":Sums", ":Mixed")


def made(config: FactoryConfig, out: Path, **options: Any) -> list[TeacherSample]:
    return read_distilled(sample_teacher(config, out, **{"threads": 1, "quiet": True, **options})).rows


def files(out: Path, *names: str) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in names}


# ---- what is no answer


NO_ANSWER: dict[str, tuple[str, str, list[str]]] = {
    # how it ended: its text, what to keep, and what the four samples are dropped as
    "content_filter": ("3", "all", ["", "", "error", ""]),
    "tool_calls": ("3", "right", ["", "wrong", "error", ""]),
    "error": ("<think>Let me see</think>3", "graded", ["", "", "error", ""]),
    "insufficient_system_resource": ("3", "all", ["", "", "error", ""]),
    '["stop"]': ("3", "all", ["", "", "error", ""]),
}


@pytest.mark.parametrize("end", NO_ANSWER)
def test_what_a_server_broke_off_is_never_trained_on(server: Adder, remote: Make, tmp_path: Path, end: str) -> None:
    """Though its text would be graded right; and a whole answer of the same text is no duplicate of it."""
    text, keep, dropped = NO_ANSWER[end]
    replies = [says("1"), says(text, finish=json.loads(end) if end[0] == "[" else end), says("9"), says("3")]
    server.rule = lambda body, number: replies[number]
    config = remote({"concurrency": 1}, problems=2, samples=2, keep=keep)
    rows = made(config, tmp_path)
    assert [row.dropped for row in rows] == dropped
    assert [row.verdict for row in rows] == ["right", "wrong", "ungraded", "right"]
    assert "| error | no answer" in (tmp_path / "card.md").read_text(encoding="utf-8")
    before = files(tmp_path, "data.parquet", "contaminated.jsonl")
    (tmp_path / "finished.json").unlink()
    made(config, tmp_path)
    assert files(tmp_path, *before) == before and len(server.asked) == 4, "it is not asked for again"


# ---- what is on the disk


def test_all_that_was_sampled_is_read_back(server: Adder, remote: Make, tmp_path: Path) -> None:
    """Texts with and without a thought, cut off, paid: the file and the card of a further call are the same."""
    texts = ["<think>so</think>1", "3", "<think></think>5", "7", "9\n\nindeed naïve", "<think>never ends"]

    def rule(body: dict[str, Any], number: int) -> Reply:
        return says(texts[number], prompt=5 + number, tokens=50 + number, finish="length" if number == 3 else "stop")

    server.rule = rule
    config = remote({"concurrency": 1, "price_in": 1.0, "price_out": 2.0}, problems=6, samples=1, keep="all")
    rows = made(config, tmp_path)
    assert [(row.prompt_tokens, row.completion_tokens) for row in rows] == [(5 + n, 50 + n) for n in range(6)]
    assert [row.dropped for row in rows] == ["", "", "", "length", "", ""]
    before = files(tmp_path, "data.parquet", "contaminated.jsonl", "samples.jsonl", "purse.jsonl", "factory.yaml")
    card = (tmp_path / "card.md").read_text(encoding="utf-8").partition("## Cost")[0]
    for name in ("data.parquet", "finished.json"):
        (tmp_path / name).unlink()
        made(config, tmp_path)
        assert files(tmp_path, *before) == before, f"without {name}, all files are written again"
    assert (tmp_path / "card.md").read_text(encoding="utf-8").partition("## Cost")[0] == card
    assert len(server.asked) == 6


OTHERS: dict[str, Any] = {
    "teacher": "OTHER", "model": "other", "temperature": 0.5, "top_p": 0.5, "max_tokens": 21, "thinking": "on", "seed": 1,
    "samples": 3, "seed_bits": 31,
}  # fmt: skip


def test_samples_of_other_settings_are_never_mixed_in(server: Adder, remote: Make, tmp_path: Path) -> None:
    """Also where factory.yaml was edited by hand. What only selects among samples may be edited so."""
    made(remote({"concurrency": 1}, keep="graded"), tmp_path)
    (tmp_path / "finished.json").unlink()
    asked = len(server.asked)
    for name, value in OTHERS.items():
        other = remote(keep="graded", **{name: server.url + "/" if value == "OTHER" else value})
        (tmp_path / "factory.yaml").write_text(to_yaml(other), encoding="utf-8")
        with pytest.raises(
            ConfigError, match=r"samples.jsonl:1: this sample comes from another teacher or other settings"
        ):
            made(other, tmp_path)
    assert len(server.asked) == asked
    other = remote(keep="right", filters={"names": ()})
    (tmp_path / "factory.yaml").write_text(to_yaml(other), encoding="utf-8")
    assert {row.dropped for row in made(other, tmp_path)} == {"", "wrong"} and len(server.asked) == asked


REFUSED: dict[str, Any] = {
    "task": MIXED, "options": {"limit": 30}, "split": "dev", "problems": 7, "samples": 3,
    "temperature": 0.5, "top_p": 0.5, "max_tokens": 21, "thinking": "on", "seed": 1, "seed_bits": 31, "keep": "graded",
    "batch": 9, "decontaminate": (SUMS,), "filters": {"overlap": 9}, "device": "cuda", "dtype": "bfloat16", "model": "other",
    "data": "x", "teacher": "http://127.0.0.1:9/v1", "top_k": 1,
}  # fmt: skip


def test_a_folder_is_of_one_config_and_every_field_counts(server: Adder, remote: Make, tmp_path: Path) -> None:
    made(remote(problems=1), tmp_path)
    assert {*REFUSED, "access"} == set(FactoryConfig.model_fields)
    for name, value in REFUSED.items():
        other = remote(problems=1).model_copy(update={name: FilterConfig(**value) if name == "filters" else value})
        with pytest.raises(ConfigError, match=rf"factory.yaml: this folder has samples with {name}=.*, but {name}="):
            made(other, tmp_path)
    (tmp_path / "file").write_text("dear", encoding="utf-8")
    with pytest.raises(ConfigError, match="file: this is not a folder"):
        made(remote(), tmp_path / "file")


# ---- a folder belongs to its inputs

TASK = """
from rorqual.tasks.task import Problem, Task, Verdict

class Mine(Task):
    name = "mine"

    def problems(self, split, seed):
        yield from (Problem(f"{split} {n}", f"In the {split} split, {n} + 1 ASKED", "1", "mine") for n in range(6))

    def grade(self, problem, reply):
        return Verdict.RIGHT
"""


@pytest.mark.parametrize("changed", ["train.jsonl", "eval.jsonl"])
def test_a_finished_folder_is_not_returned_for_another_input(
    server: Adder, remote: Make, tmp_path: Path, changed: str
) -> None:
    """Which is named, with what to do. An input that is gone cannot be compared: the dataset is returned."""
    for name in ("train", "test", "eval"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": f"1 + 1, {name}?", "answer": "2"}))
    way = {"task": "messages", "data": str(tmp_path), "decontaminate": (str(tmp_path / "eval.jsonl"),)}
    config, out = remote(**way), tmp_path / "out"
    made(config, out)
    file = tmp_path / changed
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(ConfigError, match=rf"(?s)finished.json: .* changed: {file}\n.*another folder \(out=\)"):
        made(config, out)
    file.unlink()
    made(config, out)


def test_an_answer_is_not_stored_for_a_prompt_that_it_does_not_answer(
    server: Adder, remote: Make, tmp_path: Path
) -> None:
    """The prompts of a task change, under the same keys, before a folder is resumed that a budget had stopped."""
    out, file, prices = tmp_path / "out", tmp_path / "mine.py", {"price_in": 1.0, "price_out": 2.0}
    file.write_text(TASK, encoding="utf-8")
    with pytest.raises(BudgetReached):
        made(remote({"budget": 0.0004, **prices}, task=f"{file}:Mine"), out)
    file.write_text(TASK.replace("ASKED", "told"), encoding="utf-8")
    config = remote({"budget": 1.0, **prices}, task=f"{file}:Mine")
    asked = len(server.asked)
    with pytest.raises(
        DataError, match=r"(?s)samples.jsonl:1: this sample answers another prompt: .*'train 0'.*\(out=\)"
    ):
        made(config, out)
    assert len(server.asked) == asked > 0
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(line.pop("prompt") for line in lines), "as in an earlier version"
    (out / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    made(config, out)
    file.write_text(TASK, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"changed: {file}\n"):
        made(config, out)
    (out / "finished.json").write_text('{"rows": 12}', encoding="utf-8")
    made(config, out)


# ---- what a person sees


def test_the_progress_counts_samples_and_quiet_says_nothing(
    server: Adder, remote: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.rule = lambda body, number: fault(401) if number == 5 else says("1")
    config = remote({"concurrency": 1, "price_out": 1.0})
    with pytest.raises(RorqualError):
        made(config, tmp_path)
    assert capsys.readouterr() == ("", "")
    server.rule = lambda body, number: says("1")
    made(config, tmp_path, quiet=False)
    told = capsys.readouterr().err
    assert "distil: resuming with 5 of 12 samples" in told
    assert re.search(r"distil sums  12/12  right 17%  paid 0.00012  ", told), told


def test_html_of_a_server_is_text_on_the_card(server: Adder, remote: Make, tmp_path: Path) -> None:
    """In the name of its model, which stays in its cell, and in its error."""

    def rule(body: dict[str, Any], number: int) -> Reply:
        said = json.loads(says("1")[1]) | {"model": "<b>bold</b>\n| one & all"}
        return fault(400, "<script>alert(1)</script>") if number else (200, json.dumps(said).encode(), {})

    server.rule = rule
    made(remote({"concurrency": 1}, problems=2, samples=1, keep="all"), tmp_path)
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert "| adder | &lt;b&gt;bold&lt;/b&gt; \\| one &amp; all | 1 |\n" in card
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in card and not re.search("<b>|<script>", card)


# ---- a run as the teacher


def test_the_number_of_threads_is_the_engines(local: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="threads"):
        made(local(), tmp_path, threads=0)


# ---- which problems are asked


def prompts(path: Path, texts: list[str]) -> Path:
    lines = [json.dumps({"prompt": text, "completion": str(number)}) for number, text in enumerate(texts)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_an_instruction_that_many_problems_share_is_no_contamination(
    server: Adder, remote: Make, tmp_path: Path
) -> None:
    """Of the problems, nor of a sample that repeats it, where the evaluation set shares it too, and only there."""
    told = "think it over step by step and then write the answer on a line of its own"
    texts = [f"question {number}: {told}" for number in range(40)]
    data = prompts(tmp_path / "train.jsonl", texts)
    held = [json.dumps({"text": f"{name}: {told}"}) for name in ("another", "a third", "one more", "the last")]
    (tmp_path / "eval.jsonl").write_text("\n".join(held), encoding="utf-8")
    server.rule = lambda body, number: says(f"I will {told} {number}")
    way: dict[str, Any] = {"task": "messages", "data": str(data), "decontaminate": (str(tmp_path / "eval.jsonl"),)}
    rows = made(remote(**way, problems=11, samples=1, keep="all"), tmp_path / "many")
    assert [row.dropped for row in rows] == [""] * 11
    for name, items in (("few", held[:3]), ("other", [*held, '{"text": "Which whale is the largest?"}'])):
        (tmp_path / "eval.jsonl").write_text("\n".join(items), encoding="utf-8")
        with pytest.raises(DataError, match=r"all \d+ problems match an evaluation set; the first, .*eval.jsonl:1"):
            made(remote(**way, problems=11), tmp_path / name)
