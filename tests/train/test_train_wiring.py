"""What a run records, keeps and is told: each number is of what it names, over all updates, rows and parts."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from little import (
    ROW,
    documents,
    loud,
    padded,
    records,
    rollouts,
    sampled,
    sft_run,
    tiny,
    tokenizer,
    train_with,
)

from rorqual.core.config import read_yaml
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.engine import Completion
from rorqual.model import Decoder
from rorqual.model.account import account
from rorqual.ops.moe import Routing
from rorqual.tasks.task import Problem, Verdict
from rorqual.train.gradient import UpdateResult, _record_replay_metrics
from rorqual.train.loop import StepTotals, fit, step_flops
from rorqual.train.objectives import NextToken
from rorqual.train.run import Run, StartConfig
from rorqual.train.sources import Source, StepBatches
from rorqual.train.sources.reference import ReferenceModel
from rorqual.train.sources.rollouts import rollout_metrics
from rorqual.train.sources.sampler import ScoredCompletion
from rorqual.train.state import check_vocabulary
from rorqual.train.tune import tuning_end_message

# ---- the fields of a step's record


def test_a_record_is_of_all_updates_of_its_step() -> None:
    """Means are over all tokens, not over updates; maxima are the largest; loads are added up before they are compared."""
    totals = StepTotals([], 0.0)
    one = UpdateResult(
        [], 2.0, {"entropy": (9.0, 3.0), "routing_flips": (1.0, 4.0)}, {"gap": 5.0}, [torch.tensor([4, 0])]
    )
    two = UpdateResult(
        [], 4.0, {"entropy": (1.0, 1.0), "routing_flips": (2.0, 8.0)}, {"gap": 3.0}, [torch.tensor([2, 6])]
    )
    one.zeros, two.zeros = 3, 2
    totals.add_update(one, 0.5, 30)
    totals.add_update(two, 0.25, 10)
    assert totals.metrics_record() == {
        "loss": 3.0, "grad_norm": 0.5, "entropy": 2.5, "routing_flips": 3.0, "routing_flip_share": 0.25, "gap_max": 5.0,
        "load_max_over_mean": 1.0, "updates": 2, "tokens": 40, "zero_gradients": 3,
    }  # fmt: skip


def answered(
    text: str, *, thought: str | None = None, verdict: Verdict = Verdict.RIGHT, cut: bool = False
) -> ScoredCompletion:
    """An answer by the byte tokenizer, with the ids that say it."""
    ids = tokenizer()
    marks = [] if thought is None else [ids.special_id("<think>"), *ids.encode(thought)]
    end = [] if cut else [ids.special_id("<｜end▁of▁sentence｜>")]
    tokens = [*marks, ids.special_id("</think>"), *ids.encode(text), *end]
    completion = Completion((1, 2), tokens, [-1.0] * len(tokens), "length" if cut else "stop", text, thought)
    return ScoredCompletion(completion, verdict, 1.0 if verdict is Verdict.RIGHT else 0.0)


GROUPS = [
    [answered("a", thought="xyz"), answered("bb", verdict=Verdict.WRONG), answered("c", thought="v", cut=True)],
    [answered("d", verdict=Verdict.UNGRADED), answered("e"), answered("f", thought="", verdict=Verdict.WRONG)],
    [answered("g"), answered("hh")],
]
PROBLEMS = [Problem("1", "p1", "a1", "add", level="2"), Problem("2", "p2", "a2", "add", level="3"),
            Problem("3", "p3", "a3", "sub", level="2")]  # fmt: skip


def test_what_rollouts_record() -> None:
    """Two samples of eight reasoned (an empty thought is none), with a length of their own; each family and level has its reward."""
    found = rollout_metrics(PROBLEMS, GROUPS, chat_format(tokenizer()))
    lengths = [len(one.completion.token_ids) for group in GROUPS for one in group]
    assert found == {
        "reward": 5 / 7, "groups_total": 3, "groups_equal": 0, "groups_all_right": 1, "ungraded": 1, "truncated": 1,
        "sampled_tokens": sum(lengths), "think_share": 2 / 8, "think_length": 3.0, "reply_length": sum(lengths) / 8,
        "right_when_thinking": 1.0, "right_at_once": 3 / 5, "right": 5,
        "reward/add/2": 2 / 3, "reward/add/3": 1 / 2, "reward/sub/2": 1.0,
    }  # fmt: skip
    silent = rollout_metrics(PROBLEMS[2:], GROUPS[2:], chat_format(tokenizer()))
    assert (silent["think_share"], silent["think_length"], silent["right_when_thinking"]) == (0, 0, 0)


# ---- entropy


# ---- FLOPs


def cost(run: Run, modules: int) -> Any:
    return account(run.model.model_copy(update={"num_nextn_predict_layers": modules}), context=ROW)


def test_the_flops_of_trained_tokens_are_those_of_the_models_account() -> None:
    run = sft_run()
    assert step_flops(run, {"tokens": 100}) == 100 * cost(run, 1).training_flops
    alone = run.model_copy(update={"objectives": (NextToken(),)})
    assert step_flops(alone, {"tokens": 100}) == 100 * cost(run, 0).training_flops < step_flops(run, {"tokens": 100})


@pytest.mark.parametrize("name", ["sampled_tokens", "checked_tokens", "reference_tokens"])
def test_the_flops_of_each_token_that_was_only_read_are_counted_once(name: str) -> None:
    run = sft_run(objectives=(NextToken(),))
    assert step_flops(run, {"tokens": 100, name: 7}) == 100 * cost(run, 0).training_flops + 7 * cost(run, 0).flops
    assert step_flops(run, {"tokens": 0, name: 7, "teacher_flops": 11}) == 7 * cost(run, 0).flops + 11


# ---- one batch is its parts


def test_a_reference_scores_each_row_of_a_large_batch(base: Path) -> None:
    """More rows than one forward takes: each row's log-probabilities are those that it has alone."""
    reference = ReferenceModel(str(base), loud(tiny()), Tokenizer.byte_level(), temperature=0.7, threads=2)
    batch = padded(documents(8, count=37))
    whole = reference.logprobs(batch)
    alone = torch.cat([reference.logprobs(row) for row in batch.split(37)])
    assert len(whole) == 37 and torch.allclose(whole, alone, atol=1e-5)
    assert all(bool(row.any()) for row in whole) and not whole[batch.loss_mask == 0].any()


# ---- files


def test_a_checkpoint_is_written_each_so_many_seconds_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 steps of 4 seconds, those after 10 seconds without one: after steps 3 and 6, and the last. The clock is the test's."""
    clock, kept = [100.0], set[int]()
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    out = RunDir(tmp_path / "run")

    def hook(source: Source, model: Decoder, step: int) -> StepBatches:
        kept.update(out.steps())
        clock[0] += 4
        return source.step(step)

    train_with(sft_run(8, save_seconds=10), out, hook)
    assert kept | set(out.steps()) == {3, 6, 8}
    lines = [json.loads(line) for line in out.metrics_file.read_bytes().split(b"\n") if line]
    assert [line["seconds"] for line in lines] == [4.0] * 8
    assert [line["tokens_per_second"] for line in lines] == [line["tokens"] / 4 for line in lines]
    state = json.loads((out.checkpoint() / "state.json").read_bytes())
    assert state == {"step": 8, "metrics_bytes": out.metrics_file.stat().st_size, "rollouts_bytes": 0}


def test_how_often_a_run_is_saved_and_where_it_runs_are_no_other_run(tmp_path: Path) -> None:
    run, out = sft_run(2), RunDir(tmp_path / "run")
    fit(run, out, quiet=True)
    before = out.config_file.read_bytes()
    fit(sft_run(4, save_seconds=77.0), out, quiet=True)
    fit(sft_run(4), RunDir(tmp_path / "straight"), quiet=True)
    assert len(records(out.path)) == 4 and out.steps()[-1] == 4
    assert read_yaml(Run, out.config_file).save_seconds == 77.0 and before != out.config_file.read_bytes()
    fit(sft_run(4, save_seconds=5.0, device="cpu"), out, quiet=True)
    assert read_yaml(Run, out.config_file).save_seconds == 77.0, "nothing is written where nothing is trained"
    with pytest.raises(ConfigError, match="dtype: 'float32' in the folder, 'bfloat16' now"):
        fit(sft_run(4, dtype="bfloat16"), out, quiet=True)


# ---- what is refused, and what is said


def test_a_vocabulary_must_hold_the_tokenizer_and_may_be_larger() -> None:
    run = sft_run()
    for size in (BASE_VOCAB, BASE_VOCAB + 9):
        wide = run.model.model_copy(update={"vocab_size": size})
        check_vocabulary(run.model_copy(update={"model": wide}), tokenizer())
    small = run.model_copy(update={"model": run.model.model_copy(update={"vocab_size": BASE_VOCAB - 1})})
    with pytest.raises(
        ConfigError, match=f"the tokenizer has {BASE_VOCAB} tokens, but the model's vocabulary has {BASE_VOCAB - 1}"
    ):
        check_vocabulary(small, tokenizer())


def test_a_tokenizer_is_learned_from_the_source_and_kept_with_the_run(tmp_path: Path) -> None:
    out = RunDir(tmp_path / "run")
    run = sft_run(1, start=StartConfig(tokenizer="bpe:270"))
    run = run.model_copy(update={"model": run.model.model_copy(update={"vocab_size": 270})})
    state = fit(run, out, quiet=True)
    learned = Tokenizer.load(out.tokenizer_file)
    assert learned == state.tokenizer == Tokenizer.byte_level(run.source.texts(), vocab_size=270)
    assert learned != Tokenizer.byte_level(["other words"] * 9, vocab_size=270)
    given = run.model_copy(update={"start": StartConfig(tokenizer=str(out.tokenizer_file))})
    assert fit(given, RunDir(tmp_path / "given"), quiet=True).tokenizer == learned
    onward = run.model_copy(update={"start": StartConfig(run=str(out.path))})
    assert fit(onward, RunDir(tmp_path / "onward"), quiet=True).tokenizer == learned


def test_the_last_line_of_an_adapter_says_its_memory_and_its_speed() -> None:
    said = tuning_end_message({"optimizer_bytes": 12_345, "trained_parameters": 6_789}, seconds=3.0, steps=2)
    assert said.startswith("optimizer state 12,345 bytes for 6,789 parameters; ") and said.endswith(
        "; 1.500 s per step"
    )
    [kib] = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    [shown] = re.findall(r"peak memory of the process ([\d,]+) MB", said)
    # At least this process's own; a parent's may be counted in.
    assert 0.95 < int(shown.replace(",", "")) / (int(kib) * 1024 / 1e6) < 20


def test_a_batch_is_divided_with_all_its_fields() -> None:
    """Every tensor of a batch is divided: none is left whole beside the parts of the others."""
    batch = rollouts(sampled(loud(tiny())), pad=True)
    full = replace(batch, old_logprobs=batch.sampled_logprobs, teacher_ids=batch.replay, kept=batch.tokens)
    parts = full.split(4)
    assert [len(part.tokens) for part in parts] == [2, 2, 2] and len(full.split(6)) == 6
    for name in ("tokens", "targets", "loss_mask", "segments", "positions", "advantages", "sampled_logprobs", "lengths",
                 "replay", "old_logprobs", "teacher_ids", "kept"):  # fmt: skip
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(full, name)), name
    assert sum(part.n_tokens for part in parts) == full.n_tokens == int((full.segments >= 0).sum()) < 6 * ROW


def test_the_gap_of_replayed_experts_is_the_largest_of_all_layers_and_tokens() -> None:
    """Padding does not count, and a later layer that agrees hides nothing."""
    chosen, own = torch.tensor([[0, 1], [2, 3], [0, 1]]), torch.tensor([[0, 1], [2, 0], [2, 3]])
    weights = torch.ones(3, 2)
    layers = [
        Routing(chosen, weights, torch.ones(3, 4), own, torch.tensor([0.0, 0.5, 9.0])),
        Routing(chosen, weights, torch.ones(3, 4), chosen, torch.tensor([0.1, 0.0, 9.0])),
    ]
    update = UpdateResult([], 0.0)
    _record_replay_metrics(update, layers, torch.tensor([True, True, False]))
    assert update.maxima["routing_gap"] == 0.5 and update.means["routing_flips"] == (1.0, 4.0)
