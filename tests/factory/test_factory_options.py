"""No option of `rorqual distil` is passed over: each field of its configuration has its own effect, and no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from distil_server import Adder, says
from sums_task import SUMS, Make

from rorqual.data.distilled import TeacherSample, read_distilled
from rorqual.engine import Engine
from rorqual.engine.request import Request, SamplingParams
from rorqual.engine.seeds import sample_seed
from rorqual.evals.evaluating import with_problem_seed
from rorqual.factory import FactoryConfig, sample_teacher
from rorqual.tasks.find import load_task

DRAWN, LEAKY, MIXED, CRASHING = (SUMS.replace(":Sums", f":{name}") for name in ("Drawn", "Leaky", "Mixed", "Crashing"))


def made(config: FactoryConfig, out: Path) -> list[TeacherSample]:
    return read_distilled(sample_teacher(config, out, threads=1, quiet=True)).rows


def keys(rows: list[TeacherSample]) -> list[str]:
    return list(dict.fromkeys(row.key for row in rows))


def sums(*first: int) -> list[str]:
    return [f"{a}+{a + 1}" for a in first]


def question(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


# ---- what the body of a request says

SAID: dict[str, tuple[Any, dict[str, Any]]] = {
    # option: another value, and the keys of the body that are then another
    "model": ("multiplier", {"model": "multiplier"}),
    "temperature": (0.25, {"temperature": 0.25}),
    "top_p": (0.75, {"top_p": 0.75}),
    "max_tokens": (33, {"max_tokens": 33}),
    "thinking": ("on", {"chat_template_kwargs": {"thinking": True, "enable_thinking": True}}),
}
USUAL = {"model": "adder", "temperature": 1.0, "top_p": 1.0, "max_tokens": 512}


def asked_by(server: Adder, remote: Make, out: Path, **changes: Any) -> dict[str, Any]:
    """The only body of a factory that samples one problem once, without what every problem has of its own."""
    made(remote(problems=1, samples=1, keep="all", **{"max_tokens": 512, **changes}), out)
    body = server.asked.pop()
    assert not server.asked and body.pop("messages") == [{"role": "user", "content": "What is 0 + 1?"}]
    assert body.pop("seed") == with_problem_seed(SamplingParams(), "0+1").seed
    return body


@pytest.mark.parametrize("option", SAID)
def test_a_request_says_it(server: Adder, remote: Make, tmp_path: Path, option: str) -> None:
    value, said = SAID[option]
    assert FactoryConfig.model_fields[option].default != value
    assert asked_by(server, remote, tmp_path / "plain") == USUAL
    assert asked_by(server, remote, tmp_path / "other", **{option: value}) == USUAL | said
    row = read_distilled(tmp_path / "other" / "data.parquet").rows[0]
    assert json.loads(row.params)[option] == value, "each row says how it was sampled"


# ---- what is asked, how often, and what becomes of it

EFFECTS: list[tuple[dict[str, Any], list[str]]] = [
    # what is set, and the problems that are then asked
    ({}, sums(0, 1, 2, 3, 4, 5)),
    ({"task": LEAKY}, sums(0, 1, 2, 4, 5, 6)),
    ({"options": {"limit": 3}}, sums(0, 1, 2)),
    ({"split": "dev"}, sums(*range(1000, 1006))),
    ({"problems": 3}, sums(0, 1, 2)),
    ({"task": MIXED, "problems": 2}, sums(0, 1)),
    ({"decontaminate": (LEAKY,)}, sums(0, 1, 2, 4, 5, 6)),
]


@pytest.mark.parametrize(("changes", "wanted"), EFFECTS)
def test_a_setting_decides_which_problems_are_asked(
    server: Adder, remote: Make, tmp_path: Path, changes: dict[str, Any], wanted: list[str]
) -> None:
    assert keys(made(remote(samples=1, **changes), tmp_path)) == wanted
    assert {question(body) for body in server.asked} == {f"What is {key.replace('+', ' + ')}?" for key in wanted}


def test_the_first_sample_of_each_problem_is_asked_before_any_second(
    server: Adder, remote: Make, tmp_path: Path
) -> None:
    rows = made(remote({"concurrency": 1}, problems=2, samples=3, keep="all"), tmp_path)
    assert [(row.key, row.number) for row in rows] == [(key, n) for key in sums(0, 1) for n in range(3)]
    asked = [(question(body), body["seed"]) for body in server.asked]
    wanted = [(row.prompt, row.seed) for n in range(3) for row in rows if row.number == n]
    assert asked == wanted, (
        "a first sample of each problem before the second of any, and each row has the seed that was sent"
    )
    assert len({row.seed for row in rows}) == 6
    for row in rows:
        assert row.seed == sample_seed(with_problem_seed(SamplingParams(), row.key).seed, row.number)


def test_the_seed_draws_problems_and_samples(server: Adder, remote: Make, tmp_path: Path) -> None:
    rows = made(remote(task=DRAWN, seed=7, samples=1), tmp_path / "other")
    assert keys(rows) == sums(7, 9, 10, 11, 12, 13), "it draws the problems, and those of the test split"
    assert [row.seed for row in rows] == [with_problem_seed(SamplingParams(seed=7), row.key).seed for row in rows]
    assert {body["seed"] for body in server.asked} == {row.seed for row in rows}
    met = [json.loads(line) for line in (tmp_path / "other" / "contaminated.jsonl").read_text().splitlines()]
    assert [line["key"] for line in met] == sums(8)
    rows = made(remote(decontaminate=(DRAWN,), seed=2, samples=1), tmp_path / "beside")
    assert keys(rows) == sums(0, 1, 2, 4, 5, 6), "and those of another task to be measured on"
    plain = made(remote(samples=1), tmp_path / "plain")
    assert [row.seed for row in plain] == [with_problem_seed(SamplingParams(), row.key).seed for row in plain]


def test_seeds_have_as_many_bits_as_said(server: Adder, remote: Make, tmp_path: Path) -> None:
    for bits in (64, 31):
        rows = made(remote(seed_bits=bits, keep="all"), tmp_path / str(bits))
        asked = {body["seed"] for body in server.asked}
        assert asked == {row.seed for row in rows} and len(asked) == 12
        assert all(0 <= seed < 2**31 for seed in asked) == (bits == 31)
        server.asked.clear()


KEEP = {"right": ["", "wrong", "ungraded"], "graded": ["", "", "ungraded"], "all": ["", "", ""]}


def test_the_verdicts_to_keep(server: Adder, remote: Make, tmp_path: Path) -> None:
    texts = {"What is 0 + 1?": "1", "What is 1 + 2?": "4", "What is 2 + 3?": " "}
    server.rule = lambda body, number: says(texts[question(body)])
    for keep, dropped in KEEP.items():
        rows = made(remote(problems=3, samples=1, keep=keep), tmp_path / keep)
        assert [row.dropped for row in rows] == dropped
        assert [row.verdict for row in rows] == ["right", "wrong", "ungraded"]
    assert FactoryConfig.model_fields["keep"].default == "right"


def test_a_batch_is_kept_together(local: Make, tmp_path: Path) -> None:
    """What is drawn together is kept together, before a grader that fails on the third problem sees any of it."""
    for batch, kept in ((1, 6), (2, 6), (4, 8), (5, 8), (256, 12)):
        with pytest.raises(Exception, match=f"{kept} of 12 samples are saved"):
            made(local(task=CRASHING, batch=batch), tmp_path / str(batch))
    assert FactoryConfig.model_fields["batch"].default == 256


def test_a_run_is_sampled_as_the_settings_say(local: Make, run: Path, tmp_path: Path) -> None:
    """The same tokens as the engine draws that is given each of these values by hand."""
    said = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 5, "thinking": "on", "seed": 3, "samples": 3}
    rows = made(local(problems=2, keep="all", **said), tmp_path / "out")
    assert len(rows) == 6
    engine = Engine(run, record_experts=False)
    for problem in list(load_task(SUMS).problems("train", 3))[:2]:
        params = SamplingParams(
            temperature=0.7,
            top_p=0.9,
            max_tokens=5,
            n=3,
            seed=with_problem_seed(SamplingParams(seed=3), problem.key).seed,
        )
        (drawn,) = engine.generate([Request(problem.messages, params, "on")])
        mine = [row for row in rows if row.key == problem.key]
        for number, (row, one) in enumerate(zip(mine, drawn, strict=True)):
            assert [*row.prompt_ids, *row.token_ids] == [*one.prompt_ids, *one.token_ids]
            assert (row.number, row.messages[-1].content) == (number, one.text)
            assert row.seed == sample_seed(params.seed, number)
    assert {row.params for row in rows} == {json.dumps({**said, "model": "", "seed_bits": 64}, sort_keys=True)}
    for name, value in said.items():
        plain = FactoryConfig.model_fields[name].default
        if name in ("samples", "seed"):
            continue  # by the cases above
        other = made(local(problems=2, keep="all", **{**said, name: plain}), tmp_path / name)
        assert [row.token_ids for row in other] != [row.token_ids for row in rows], (
            f"{name}={value} is as good as {plain}"
        )
