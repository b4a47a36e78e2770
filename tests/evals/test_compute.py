"""`rorqual compute`: the experts of each token against a plain forward pass, their groups, the table and the page."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from in_process import output_of
from rorqual.cli.verbs.compute import ComputeSettings
from rorqual.core.errors import ConfigError
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.engine import Engine, SamplingParams
from rorqual.evals.compute import (
    LEAST,
    ComputeReport,
    experts_used,
    measure_compute,
    ratio_interval,
)
from rorqual.evals.evaluating import pick_problems
from rorqual.evals.stats import t_interval
from rorqual.model import Decoder, ModelConfig, Stage
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.ffn.router import GroupedTopKConfig, ZeroExpertsConfig
from rorqual.recipes.models import v3_like
from rorqual.tasks.find import load_task

TOKENIZER = Tokenizer.byte_level()
TASK = load_task("families:add,count")
ZERO = ZeroExpertsConfig(n_routed_experts=6, zero_expert_num=4, num_experts_per_tok=3, expected_experts=1.5)


def model_of(*routers: Any) -> Decoder:
    """One layer with each router, loud enough that choices differ; a router of None is a dense layer."""
    config = v3_like("tiny", vocab_size=BASE_VOCAB, context=256)
    attention = config.stages[0].attention
    stages = tuple(
        Stage(
            layers=1,
            attention=attention,
            ffn=DenseConfig(intermediate_size=32)
            if router is None
            else MoEConfig(router=router, moe_intermediate_size=16),
        )
        for router in routers
    )
    config = ModelConfig(**dict(config) | {"stages": stages, "num_nextn_predict_layers": 0})
    model, generator = Decoder(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, tensor in sorted(model.state_dict().items()):
            if tensor.dim() > 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor.shape[-1] ** 0.5)
    return model


def engine_of(model: Decoder) -> Engine:
    return Engine.of(model, TOKENIZER, chat_format(TOKENIZER), slots=4, record_experts=True)


@pytest.fixture(scope="module")
def model() -> Decoder:
    other = ZeroExpertsConfig(n_routed_experts=9, zero_expert_num=2, num_experts_per_tok=3, expected_experts=2.5)
    return model_of(None, ZERO, other)


@pytest.fixture(scope="module")
def report(model: Decoder) -> ComputeReport:
    problems = pick_problems(TASK, "test", 6, 0, False)
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=1)
    return measure_compute(engine_of(model), TASK, problems, model="mine", thinking="on", params=params)


@torch.no_grad()
def test_each_token_has_the_experts_of_a_plain_forward_pass(report: ComputeReport, model: Decoder) -> None:
    assert (report.layers, report.chosen, len(report.replies)) == (2, 3, 6)
    for reply in report.replies:
        routing = model(torch.tensor([reply.tokens])).routing
        counts = [(one.indices < experts).sum(-1).float() for one, experts in zip(routing, (6, 9), strict=True)]
        assert list(reply.experts) == pytest.approx((sum(counts) / 2).tolist())  # type: ignore[attr-defined]
        assert len(reply.parts) == len(reply.tokens)
    assert len({value for reply in report.replies for value in reply.experts}) > 3


def test_identity_experts_and_no_expert_do_not_count() -> None:
    config = model_of(ZERO, None, ZERO.model_copy(update={"n_routed_experts": 4, "zero_expert_num": 6})).config
    chosen = torch.tensor([[[0, 5, 6], [0, 4, 9]], [[-1, -1, -1], [3, 2, 1]]])
    assert experts_used(chosen, config).tolist() == [(2 + 1) / 2, (0 + 3) / 2]


def test_parts_are_prompt_thinking_and_answer(report: ComputeReport) -> None:
    think, end = TOKENIZER.special_id("<think>"), TOKENIZER.special_id("</think>")
    for reply in report.replies:
        start = reply.parts.count("prompt")
        assert reply.parts[:start] == ("prompt",) * start and "prompt" not in reply.parts[start:]
        written = reply.tokens[start:]
        closed = written.index(end) + 1 if end in written else len(written)
        assert reply.parts[start:] == ("thinking",) * closed + ("answer",) * (len(written) - closed)
        assert TOKENIZER.decode(list(reply.tokens[:start]), specials=True).count(reply.problem.prompt) == 1
        assert think in reply.tokens[:start], "in mode `on`, the prompt opens the thought"


def test_groups_are_plain_means_with_intervals_over_problems(report: ComputeReport) -> None:
    found: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number, reply in enumerate(report.replies):
        start = reply.parts.count("prompt")
        n = len(reply.tokens) - start
        for place, used in enumerate(reply.experts):
            names = [
                ("part", "all"),
                ("part", reply.parts[place]),
                ("token", TOKENIZER.decode([reply.tokens[place]], specials=True)),
            ]
            if place >= start:
                names += [("family", reply.problem.family), ("level", f"{reply.problem.family}, {reply.problem.level}")]
                names += [("verdict", reply.verdict.value), ("position", f"quarter {1 + (place - start) * 4 // n}")]
            for name in names:
                found[name][number].append(used)
    expected = {
        key: parts for key, parts in found.items() if key[0] != "token" or sum(map(len, parts.values())) >= LEAST
    }
    assert {(group.kind, group.name) for group in report.groups} == expected.keys()
    for group in report.groups:
        parts = expected[group.kind, group.name]
        values = [value for part in parts.values() for value in part]
        assert (group.tokens, group.problems) == (len(values), len(parts))
        assert group.experts == pytest.approx(sum(values) / len(values))
        if len(parts) == 1:
            assert group.interval is None
        else:
            assert group.interval == ratio_interval(list(parts.values()))
            assert group.interval.low <= group.experts <= group.interval.high


def test_the_interval_is_students_for_equal_sizes() -> None:
    equal = [[1.0, 3.0], [2.0, 6.0], [5.0, 2.0]]
    ends = t_interval([2.0, 4.0, 3.5])
    assert (ratio_interval(equal).low, ratio_interval(equal).high) == pytest.approx((ends.low, ends.high))


@pytest.mark.parametrize(
    ("routers", "what"),
    [
        ((None, None), "this model has no router, so all tokens take the same computation"),
        ((GroupedTopKConfig(n_routed_experts=4, num_experts_per_tok=2),), "all tokens use 2 experts per layer"),
    ],
)
def test_a_model_whose_tokens_take_the_same_computation_is_refused(routers: Any, what: str) -> None:
    problems, shown = pick_problems(TASK, "test", 5, 0, False), list[tuple[int, int]]()
    engine, params = engine_of(model_of(*routers)), SamplingParams(max_tokens=4)
    with pytest.raises(ConfigError, match=what) as refused:
        measure_compute(engine, TASK, problems, params=params, progress=lambda *of: shown.append(of))
    assert "kind zero" in refused.value.remedy
    assert all(total == 1 for _, total in shown), "at most one answer before the refusal"


def test_the_command_gives_its_options_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    router = "model.stages.1.ffn.router={kind: zero, n_routed_experts: 6, zero_expert_num: 4, num_experts_per_tok: 3, expected_experts: 1.5}"
    output_of("train", "sft", "task=families:add", "size=tiny", "steps=2", f"out={run}", router, "quiet=true")

    def said(code: int = 0, **more: str) -> dict[str, Any]:
        out, page = tmp_path / "c.json", tmp_path / "c.html"
        given = {"count": "3", "max_tokens": "9", "threads": "1", "out": str(out), "page": str(page)} | more
        text = output_of("compute", str(run), *(f"{key}={value}" for key, value in given.items()), code=code)
        if code:
            return {"text": text}
        assert "experts with weights per token and layer, of 3 choices in 1 layers" in text
        assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
        return json.loads(out.read_text(encoding="utf-8"))

    plain = said(task="families:add")
    assert plain == said(task="families:add") and plain["model"] == str(run)
    changes = {
        "task": "families:sub", "split": "dev", "count": "4", "seed": "1", "thinking": "off", "temperature": "1.5", "max_tokens": "5",
        "options": "{hard: 1.0}", "dtype": "bfloat16", "per_family": "true",
    }  # fmt: skip
    for key, value in changes.items():
        assert said(**{"task": "families:add", key: value}) != plain, key
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f'{{"question": "{n}+1?", "answer": "{n + 1}"}}\n' for n in range(80)), encoding="utf-8")
    assert said(task="messages", data=str(data))["task"] == "messages"
    assert {*changes, "data", "out", "page", "threads", "device"} == set(ComputeSettings.model_fields)
    assert "key 'task' is missing" in said(2)["text"]
    assert "device 'gpu9' is not available" in said(2, task="families:add", device="gpu9")["text"]
    for key in ("out", "page"):
        refused = said(2, task="families:add", **{key: str(tmp_path)})["text"]
        assert "out is a folder" in refused and "answer/s" not in refused, "before the first answer"
