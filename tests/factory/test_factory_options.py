"""No option of `rorqual distil` is passed over: each field of its configuration has its own effect, and no other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distil_server import Adder, answer, says
from sums_task import SUMS, Make

from rorqual.data.distilled import Distilled, read_distilled
from rorqual.engine import Engine
from rorqual.engine.request import Request, SamplingParams
from rorqual.engine.score import score
from rorqual.engine.seeds import sample_seed
from rorqual.evals.run import seeded
from rorqual.factory import FactoryConfig, sample_teacher
from rorqual.tasks.find import load_task

DRAWN, LEAKY, MIXED, CRASHING = (SUMS.replace(":Sums", f":{name}") for name in ("Drawn", "Leaky", "Mixed", "Crashing"))


def made(config: FactoryConfig, out: Path) -> list[Distilled]:
    return read_distilled(sample_teacher(config, out, threads=1, quiet=True)).rows


def keys(rows: list[Distilled]) -> list[str]:
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
    config = remote(problems=1, samples=1, keep="all", **{"max_tokens": 512, **changes})
    made(config, out)
    body = server.asked.pop()
    assert not server.asked and body.pop("messages") == [{"role": "user", "content": "What is 0 + 1?"}]
    assert body.pop("seed") == seeded(SamplingParams(), "0+1").seed
    return body


@pytest.mark.parametrize("option", SAID)
def test_a_request_says_it(server: Adder, remote: Make, tmp_path: Path, option: str) -> None:
    value, said = SAID[option]
    assert FactoryConfig.model_fields[option].default != value
    assert asked_by(server, remote, tmp_path / "plain") == USUAL
    assert asked_by(server, remote, tmp_path / "other", **{option: value}) == USUAL | said
    row = read_distilled(tmp_path / "other" / "data.parquet").rows[0]
    assert json.loads(row.params)[option] == value, "each row says how it was sampled"


def test_thinking_may_be_turned_off(server: Adder, remote: Make, tmp_path: Path) -> None:
    off = {"thinking": False, "enable_thinking": False}
    assert asked_by(server, remote, tmp_path, thinking="off") == USUAL | {"chat_template_kwargs": off}


# ---- what is asked, how often, and what becomes of it

Shown = Callable[[Adder, Make, Make, Path], None]
CASES: dict[str, Shown] = {}


def shows(option: str) -> Callable[[Shown], Shown]:
    def note(case: Shown) -> Shown:
        assert option not in CASES
        CASES[option] = case
        return case

    return note


@shows("teacher")
def _teacher(server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    other = Adder()
    other.start()
    rows = made(remote(teacher=other.url), tmp_path / "other")
    other.stop()
    assert (len(other.asked), len(server.asked)) == (12, 0) and {row.teacher for row in rows} == {
        f"adder at {other.url}"
    }


@shows("task")
def _task(server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    assert keys(made(remote(), tmp_path / "plain")) == sums(0, 1, 2, 3, 4, 5)
    assert keys(made(remote(task=LEAKY), tmp_path / "other")) == sums(0, 1, 2, 4, 5, 6)


@shows("data")
def _data(server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    rows = [{"question": f"What is {a} + {a}?", "answer": f"#### {2 * a}"} for a in range(30)]
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, part in (("train", rows), ("test", rows[:1])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)), encoding="utf-8")
    made(remote(task="gsm8k", data=str(folder), keep="all"), tmp_path / "other")
    mine = {question(body) for body in server.asked}
    server.asked.clear()
    made(remote(task="gsm8k", keep="all"), tmp_path / "plain")
    assert len(mine) == 6 and mine <= {row["question"] for row in rows[1:]}
    assert not mine & {question(body) for body in server.asked}, "without it, the sample that the package ships is read"


@shows("options")
def _options(server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    assert len(keys(made(remote(problems=50), tmp_path / "plain"))) == 40
    assert keys(made(remote(problems=50, options={"limit": 3}), tmp_path / "other")) == sums(0, 1, 2)


@shows("split")
def _split(server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    assert keys(made(remote(problems=2, split="dev"), tmp_path)) == sums(1000, 1001)


@shows("problems")
def _problems(server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    made(remote({"concurrency": 1}, problems=3, samples=2, keep="all"), tmp_path)
    assert Counter(map(question, server.asked)) == {f"What is {a} + {a + 1}?": 2 for a in range(3)}


@shows("per_family")
def _per_family(server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    assert keys(made(remote(task=MIXED, problems=2), tmp_path / "plain")) == sums(0, 1)
    rows = made(remote(task=MIXED, problems=2, per_family=True), tmp_path / "each")
    assert keys(rows) == sums(0, 2, 1, 3, 10, 12, 11, 13), "two of each family and level"


@shows("samples")
def _samples(server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    rows = made(remote({"concurrency": 1}, problems=2, samples=3, keep="all"), tmp_path)
    assert [(row.key, row.number) for row in rows] == [(key, n) for key in sums(0, 1) for n in range(3)]
    asked = [(question(body), body["seed"]) for body in server.asked]
    first = {row.key: row.seed for row in rows}
    wanted = [(f"What is {a} + {a + 1}?", sample_seed(first[f"{a}+{a + 1}"], n)) for n in range(3) for a in range(2)]
    assert asked == wanted, "a first sample of each problem before the second of any, and each draws by itself"


@shows("seed")
def _seed(server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    rows = made(remote(task=DRAWN, seed=7, samples=1), tmp_path / "other")
    assert keys(rows) == sums(7, 9, 10, 11, 12, 13), "it draws the problems, and those of the test split"
    assert [row.seed for row in rows] == [seeded(SamplingParams(seed=7), row.key).seed for row in rows]
    assert {body["seed"] for body in server.asked} == {row.seed for row in rows}
    met = [json.loads(line) for line in (tmp_path / "other" / "contaminated.jsonl").read_text().splitlines()]
    assert [line["key"] for line in met] == sums(8)
    rows = made(remote(decontaminate=(DRAWN,), seed=2, samples=1), tmp_path / "beside")
    assert keys(rows) == sums(0, 1, 2, 4, 5, 6), "and those of another task to be measured on"
    plain = made(remote(samples=1), tmp_path / "plain")
    assert [row.seed for row in plain] == [seeded(SamplingParams(), row.key).seed for row in plain]


@shows("seed_bits")
def _seed_bits(server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    for bits in (64, 31):
        rows = made(remote(seed_bits=bits, keep="all"), tmp_path / str(bits))
        asked = {body["seed"] for body in server.asked}
        assert asked == {sample_seed(row.seed, row.number, bits) for row in rows} and len(asked) == 12
        assert all(0 <= seed < 2**31 for seed in asked) == (bits == 31)
        server.asked.clear()


KEEP = {"right": ["", "wrong", "ungraded"], "graded": ["", "", "ungraded"], "all": ["", "", ""]}


@shows("keep")
def _keep(server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    texts = {"What is 0 + 1?": "1", "What is 1 + 2?": "4", "What is 2 + 3?": " "}
    server.rule = lambda body, number: says(texts[question(body)])
    for keep, dropped in KEEP.items():
        rows = made(remote(problems=3, samples=1, keep=keep), tmp_path / keep)
        assert [row.dropped for row in rows] == dropped
        assert [row.verdict for row in rows] == ["right", "wrong", "ungraded"]
    assert FactoryConfig.model_fields["keep"].default == "right"


@shows("decontaminate")
def _decontaminate(server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    for name, text in (("a", "What is 1 + 2?"), ("b", "What is 4 + 5?")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": text}), encoding="utf-8")
    for files, wanted in ((), sums(0, 1, 2, 3)), (("a",), sums(0, 2, 3, 4)), (("a", "b"), sums(0, 2, 3, 5)):
        sets = tuple(str(tmp_path / f"{name}.jsonl") for name in files)
        assert keys(made(remote(problems=4, decontaminate=sets), tmp_path / f"out{len(files)}")) == wanted


@shows("top_k")
def _top_k(server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    for k in (0, 2, 5):
        rows = made(local(problems=2, top_k=k, filters={"names": ()}), tmp_path / str(k))
        assert all(row.top_ids.shape == row.top_logprobs.shape for row in rows)
        assert {row.top_ids.shape[1] for row in rows} == {k}


@shows("batch")
def _batch(server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    """What is drawn together is kept together, before a grader that fails on the third problem sees any of it."""
    for batch, kept in ((1, 6), (2, 6), (4, 8), (5, 8), (256, 12)):
        with pytest.raises(Exception, match=f"{kept} of 12 samples are saved"):
            made(local(task=CRASHING, batch=batch), tmp_path / str(batch))
    assert FactoryConfig.model_fields["batch"].default == 256


@shows("device")
def _device(server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    with pytest.raises((RuntimeError, AssertionError), match=r"(?i)cuda|device"):
        made(local(device="cuda:99"), tmp_path)
    assert not (tmp_path / "samples.jsonl").exists()


@shows("dtype")
def _dtype(server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        config = local(problems=2, top_k=3, dtype=dtype, filters={"names": ()})
        rows = made(config, tmp_path / dtype)
        pairs = [(row.prompt_ids, row.token_ids) for row in rows]
        for kind in ("float32", "bfloat16"):
            found = score(Engine(config.teacher, dtype=kind).scorer, pairs, 3)
            same = all(np.array_equal(row.top_logprobs, its) for row, (_, its) in zip(rows, found, strict=True))
            assert same == (kind == dtype)


@pytest.mark.parametrize("option", CASES)
def test_it_has_its_effect(option: str, server: Adder, remote: Make, local: Make, tmp_path: Path) -> None:
    CASES[option](server, remote, local, tmp_path)


def test_no_option_is_forgotten_here() -> None:
    """What `filters` and `access` hold has its own tables, in test_every_filter.py and test_every_access.py."""
    assert not CASES.keys() & SAID.keys()
    assert set(FactoryConfig.model_fields) == {*CASES, *SAID, "filters", "access"}


def test_a_run_is_sampled_as_the_settings_say(local: Make, run: Path, tmp_path: Path) -> None:
    """The same tokens as the engine draws that is given each of these values by hand."""
    said = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 5, "thinking": "on", "seed": 3, "samples": 3}
    rows = made(local(problems=2, keep="all", **said), tmp_path / "out")
    assert len(rows) == 6
    engine = Engine(run, record_experts=False)
    for problem in list(load_task(SUMS).problems("train", 3))[:2]:
        params = SamplingParams(
            temperature=0.7, top_p=0.9, max_tokens=5, n=3, seed=seeded(SamplingParams(seed=3), problem.key).seed
        )
        (drawn,) = engine.generate([Request(problem.messages, params, "on")])
        mine = [row for row in rows if row.key == problem.key]
        for number, (row, one) in enumerate(zip(mine, drawn, strict=True)):
            assert [*row.prompt_ids, *row.token_ids] == [*one.prompt_ids, *one.token_ids]
            assert (row.number, row.seed, row.messages[-1].content) == (number, params.seed, one.text)
    assert {row.params for row in rows} == {json.dumps({**said, "model": ""}, sort_keys=True)}
    for name, value in said.items():
        plain = FactoryConfig.model_fields[name].default
        if name in ("samples", "seed"):
            continue  # by the cases above
        other = made(local(problems=2, keep="all", **{**said, name: plain}), tmp_path / name)
        assert [row.token_ids for row in other] != [row.token_ids for row in rows], (
            f"{name}={value} is as good as {plain}"
        )


def test_the_servers_answer_is_the_row(server: Adder, remote: Make, tmp_path: Path) -> None:
    """Each row holds the answer to its own question and seed, not a neighbour's."""
    rows = made(remote({"concurrency": 8}, problems=4, samples=3, keep="all"), tmp_path)
    for row in rows:
        body = {"messages": [{"content": row.prompt}], "seed": sample_seed(row.seed, row.number)}
        told = answer(body)
        thought, _, text = told["choices"][0]["message"]["content"].removeprefix("<think>").partition("</think>")
        assert (row.messages[-1].reasoning, row.messages[-1].content) == (thought, text.strip())
        usage = told["usage"]
        assert (row.prompt_tokens, row.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
        assert (row.dropped == "length") == (told["choices"][0]["finish_reason"] == "length")
