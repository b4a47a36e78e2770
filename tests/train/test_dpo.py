"""DPO on preference pairs: the paper's loss, OpenAI's files, and a run that resumes to the same bits."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from little import (
    ROW,
    interrupted_at,
    loud,
    records,
    relative,
    same_gradient,
    tiny,
    tokenizer,
    train_with,
    update_of,
)

from rorqual.core.config import read_yaml
from rorqual.core.errors import ConfigError, DataError
from rorqual.core.records import Message, RunDir, Tool
from rorqual.data.chat import chat_format
from rorqual.model import Decoder
from rorqual.model.adapter import fingerprint
from rorqual.model.load.run_directory import load_run
from rorqual.recipes import make_run
from rorqual.train.gradient import UpdateResult
from rorqual.train.loop import fit
from rorqual.train.objectives import DPO
from rorqual.train.run import Run
from rorqual.train.sources import PreferencesConfig, Source, SourceInputs

CHAT = chat_format(tokenizer(), "deepseek")
BETA = 0.3


def row(prompt: str, preferred: str, other: str, *before: tuple[str, str], **more: Any) -> dict[str, Any]:
    """A line of OpenAI's form. `before` are earlier turns, and `more` is added to the input and to both replies."""
    turns = [{"role": role, "content": text} for role, text in (*before, ("user", prompt))]
    one, two = ([{"role": "assistant", "content": text} | more] for text in (preferred, other))
    given = {"messages": turns, "tools": [], "parallel_tool_calls": True} | more
    return {"input": given, "preferred_output": one, "non_preferred_output": two}


TOOLS = [Tool("add", "adds", {"type": "object"})]
ROWS = [
    row("after a", "a b", "c"),
    row("after b", "b", "b c d", ("system", "short"), ("user", "after q"), ("assistant", "q r")),
    row("after c", "d", "a longer reply"),
]
WITH_TOOLS = row("after d", "e", "f", tools=[{"type": "function", "function": asdict(TOOLS[0])}], weight=0)


def write(file: Path, *rows: Any) -> str:
    file.write_text("\n".join(json.dumps(one) for one in rows), encoding="utf-8")
    return str(file)


def source_of(data: str, reference: Path, model: Decoder, *, pairs: int = 4, row: int = 1024, seed: int = 0) -> Source:
    config = PreferencesConfig(data=data, reference=str(reference), pairs=pairs, row=row)
    return config.build(SourceInputs(model, tokenizer(), CHAT, seed, 1))


# ---- the loss


def slow_reward(model: Decoder, given: dict[str, Any], reply: str) -> torch.Tensor:
    """The log-probability of a reply and its end, one token after the other."""
    turns, tools = [Message(one["role"], one["content"]) for one in given["messages"]], TOOLS if given["tools"] else ()
    start, whole = CHAT.prompt(turns, tools=tools), CHAT.render([*turns, Message("assistant", reply)], tools=tools).ids
    logits = model.logits(model(torch.tensor([whole])).hidden)[0]
    places = range(len(start), len(whole))
    return torch.stack([logits[at - 1, whole[at]] - logits[at - 1].exp().sum().log() for at in places]).sum()


def slow_update(policy: Decoder, reference: Decoder) -> tuple[UpdateResult, dict[str, float]]:
    """The loss and its gradients by a second writing in float64, without batches; and the means of what is shown."""
    policy, reference = deepcopy(policy).double().train(), deepcopy(reference).double()
    rewards = [
        [
            BETA * (slow_reward(policy, one["input"], text) - slow_reward(reference, one["input"], text).detach())
            for text in (one["preferred_output"][0]["content"], one["non_preferred_output"][0]["content"])
        ]
        for one in (*ROWS, WITH_TOOLS)
    ]  # fmt: skip
    chosen, rejected = (torch.stack(side) for side in zip(*rewards, strict=True))
    margins = chosen - rejected
    loss = (1 + (-margins).exp()).log().mean()
    grads = torch.autograd.grad(loss, list(policy.parameters()), allow_unused=True, materialize_grads=True)
    shown = {"chosen": chosen, "rejected": rejected, "margins": margins, "accuracies": (margins > 0).double()}
    return UpdateResult(list(grads), loss.item()), {name: float(value.detach().mean()) for name, value in shown.items()}


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_loss_and_gradients_are_those_of_a_slow_second_writing(parts: int, base: Path, tmp_path: Path) -> None:
    """With the trained base as the reference of another policy, and in micro-batches, which split no pair."""
    reference, policy = load_run(RunDir(base)), load_run(RunDir(base))
    noise = loud(policy.config).state_dict()
    with torch.no_grad():
        for name, tensor in policy.named_parameters():
            tensor.add_(0.1 * noise[name])
    batch = source_of(write(tmp_path / "pairs.jsonl", *ROWS, WITH_TOOLS), base, policy).step(0).batches[0]
    found = update_of(policy, [DPO(beta=BETA)], batch, parts=parts)
    slow, shown = slow_update(policy, reference)
    assert found.loss == pytest.approx(slow.loss, rel=1e-5) and 0 < shown["accuracies"] < 1
    same_gradient(policy, slow, found, 1e-4)
    assert max(relative(torch.zeros(1), grad) for grad in found.grads) > 0.01, "a gradient that is zero shows nothing"
    assert {name: found.means[f"rewards/{name}"][0] / 4 for name in shown} == pytest.approx(shown, rel=1e-4)


# ---- the batches


def pairs_of(source: Source, step: int) -> list[tuple[str, str]]:
    (batch,) = source.step(step).batches
    texts = [tokenizer().decode(ids[segments == 0].tolist()) for ids, segments in zip(batch.tokens, batch.segments)]
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_an_epoch_has_every_pair_once_in_an_order_of_seed_and_step(base: Path, tmp_path: Path) -> None:
    data, model = write(tmp_path / "p.jsonl", *(row(f"q{i}", f"x{i}", f"y{i}") for i in range(6))), Decoder(tiny())
    one, again, other = (source_of(data, base, model, seed=seed) for seed in (3, 3, 4))
    third, second, first = (pairs_of(one, step) for step in (2, 1, 0))
    assert (
        [pairs_of(again, step) for step in (0, 1, 2)]
        == [first, second, third]
        != [pairs_of(other, step) for step in (0, 1, 2)]
    )
    epochs = [*first, *second, *third]
    assert sorted(epochs[:6]) == sorted(epochs[6:]) == [(f"q{i}x{i}", f"q{i}y{i}") for i in range(6)]
    assert epochs[:6] != epochs[6:]


# ---- runs


def dpo_run(base: Path, data: str, **changes: Any) -> Run:
    given = {"data": data, "from": str(base), "steps": "5", "pairs": "2", "row": str(ROW), "lr": "1e-3", "beta": "0.2"}
    return make_run("dpo", given | {"save_seconds": "1e-9"} | changes)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_killed_run_resumes_to_the_same_bits_with_the_same_reference(kind: str, base: Path, tmp_path: Path) -> None:
    run = dpo_run(base, write(tmp_path / "p.jsonl", *ROWS), **{"tune.kind": kind})
    fit(run, tmp_path / "straight", quiet=True)
    with pytest.raises(KeyboardInterrupt):
        train_with(run, RunDir(tmp_path / "killed"), interrupted_at(3))
    fit(run, tmp_path / "killed", quiet=True, threads=2)
    straight, killed = (load_run(RunDir(tmp_path / name)).state_dict() for name in ("straight", "killed"))
    assert all(torch.equal(tensor, killed[name]) for name, tensor in straight.items())
    lines = records(tmp_path / "straight")
    assert lines == records(tmp_path / "killed") and lines[0]["loss"] == pytest.approx(0.6931472)
    assert lines[-1]["rewards/margins"] > 0.01 > abs(lines[0]["rewards/margins"])
    stored = read_yaml(Run, tmp_path / "straight" / "run.yaml")
    assert stored.frozen_models == {"reference": fingerprint(RunDir(base).checkpoint())}


def test_what_is_given_reaches_the_run(base: Path, tmp_path: Path) -> None:
    run = dpo_run(base, "p.jsonl", seed="4")
    assert run.source == PreferencesConfig(data="p.jsonl", reference=str(base), pairs=2, row=ROW)
    assert run.objectives == (DPO(beta=0.2),) and (run.seed, run.steps, run.start.run) == (4, 5, str(base))
    assert (run.optim.lr, run.balance.gamma) == (1e-3, 0.0)  # type: ignore[attr-defined]
    assert dpo_run(base, "p.jsonl", reference="other").source.reference == "other"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="objective next_token cannot train on source preferences"):
        dpo_run(base, "p.jsonl", objectives="[{kind: dpo}, {kind: next_token}]")
    grpo = {"task": "families:add", "from": str(base), "source.reference": str(base), "objectives": "[{kind: dpo}]"}
    with pytest.raises(ConfigError, match="objective dpo cannot train on source rollouts"):
        make_run("grpo", grpo)


# ---- files


SAME = [{"role": "assistant", "content": "a b"}]
POISON: dict[str, tuple[dict[str, Any], str]] = {
    "no key": ({"preferred_output": None}, "no column 'preferred_output'"),
    "no list": ({"preferred_output": SAME[0]}, "column 'preferred_output' is not list"),
    "no object": ({"input": []}, "column 'input' is not dict"),
    "no messages": ({"input": {}}, "input: key 'messages' is a NoneType"),
    "no prompt": ({"input": {"messages": [{"role": "user", "content": " "}]}}, "input: message 1: an empty prompt"),
    "no question": ({"input": {"messages": SAME}}, "input: message 1: an assistant turn follows no turn"),
    "no end": ({"input": {"messages": [*ROWS[0]["input"]["messages"], *SAME]}}, "input: messages: the last turn is an"),
    "a role": ({"input": {"messages": [{"role": "usr", "content": "a"}]}}, "input: message 1: unknown role 'usr'"),
    "a tool": ({"input": ROWS[0]["input"] | {"tools": [{"type": "function"}]}}, "input: key 'tools' is no list of"),
    "two replies": ({"non_preferred_output": SAME * 2}, "key 'non_preferred_output' is not one assistant message"),
    "a user's reply": ({"preferred_output": [{"role": "user", "content": "a"}]}, "key 'preferred_output' is not one"),
    "a call": (
        {"preferred_output": [SAME[0] | {"tool_calls": [{}]}]},
        "preferred_output: message 1: key 'tool_calls' is",
    ),
    "nothing": ({"preferred_output": []}, "preferred_output: key 'messages' is an empty list"),
    "no text": ({"non_preferred_output": [{"role": "assistant"}]}, "non_preferred_output: message 1: key 'content' is"),
    "no reply": (
        {"preferred_output": [{"role": "assistant", "content": " "}]},
        "key 'preferred_output' is empty, or eq",
    ),
    "no preference": ({"non_preferred_output": SAME}, "key 'preferred_output' is empty, or equal"),
}


@pytest.mark.parametrize(("change", "said"), POISON.values(), ids=POISON)
def test_a_bad_line_is_refused_by_its_number_and_key(
    change: dict[str, Any], said: str, base: Path, tmp_path: Path
) -> None:
    """Beside its valid twin; before anything is written."""
    file = tmp_path / "p.jsonl"
    source_of(write(file, *ROWS, ROWS[0]), base, Decoder(tiny()))
    write(file, *ROWS, {key: value for key, value in (ROWS[0] | change).items() if value is not None})
    with pytest.raises(DataError) as caught:
        fit(dpo_run(base, str(file)), tmp_path / "run", quiet=True)
    assert str(caught.value).startswith(f"{file}:4: {said}") and caught.value.remedy
    assert not (tmp_path / "run").exists()


def test_pairs_longer_than_a_row_are_counted(base: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "p.jsonl", row("q", "a", "b"), row("q" * 30, "a", "b"), row("q", "a", "b" * 40))
    with pytest.raises(DataError, match=r"2 of 3 pairs are longer than a row of 30 tokens \(the longest: 46\)"):
        source_of(data, base, Decoder(tiny()), row=30)
    source_of(data, base, Decoder(tiny()), row=46)
