"""`rorqual.conformance`: each check refuses a plug-in with one fault and accepts its twin without it; as a call and as a command."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from rorqual.conformance import CHECKS, ConformanceError, check, run_checks
from rorqual.conformance.__main__ import main
from rorqual.core.errors import ConfigError
from rorqual.core.records import Message, Thinking
from rorqual.data.chat.deepseek import DeepSeekChat
from rorqual.data.chat.stream import ReplyDelta, ReplyReader
from rorqual.data.tokenizer import Tokenizer
from rorqual.model.attention import Attention, AttentionContext, GQAConfig, LayerCache
from rorqual.model.attention.gqa import GQA
from rorqual.model.decoder import Decoder, DecoderOutput
from rorqual.tasks.task import Problem, Split, Task, Verdict
from rorqual.train.batch import TrainBatch
from rorqual.train.objectives import LossTerm, NextToken
from rorqual.train.optim import AdamWConfig, Optimizer
from rorqual.train.optim.adamw import AdamW

FAULTS = [
    "packed",
    "cached",
    "batch mix",
    "evaluation mode",
    "state dict",
    "checkpointing",
    "finite differences",
    "second derivative",
]


class FaultyConfig(GQAConfig):
    """Grouped-query attention with the fault that is named as the check that must find it."""

    kind: Literal["faulty"] = "faulty"  # type: ignore[assignment]
    fault: str = ""
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 8

    def build(self, hidden_size: int, eps: float) -> Attention:
        return Faulty(self, hidden_size, eps)


class Square(torch.autograd.Function):
    """Its backward pass keeps numbers alone: a second derivative lacks a part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.kept = x.detach()
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 2 * ctx.kept * grads[0]


class Faulty(GQA):
    def __init__(self, config: FaultyConfig, hidden_size: int, eps: float) -> None:
        super().__init__(config, hidden_size, eps)
        self.fault, self.calls, self.hidden_scale = config.fault, 0, torch.rand(hidden_size)
        self.scale_of_output = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor, context: AttentionContext, cache: LayerCache | None) -> Tensor:
        y = super().forward(x, context, cache) * self.scale_of_output
        self.calls += 1
        if self.fault == "packed" and cache is None:
            return y + x.cumsum(1)
        if self.fault == "cached" and cache is not None:
            return y * 1.01
        if self.fault == "batch mix" and cache is not None:
            return y + x.mean(1, keepdim=True)
        if self.fault == "state dict":
            return y * self.hidden_scale.to(y)
        if self.fault == "evaluation mode":
            return dropout(y)
        if self.fault == "checkpointing":
            return y * (1 + 0.1 * (self.calls % 4))
        if self.fault == "finite differences":
            return 1.5 * y - 0.5 * y.detach()
        if self.fault == "second derivative":
            return y + Square.apply(y)
        return y + y * y + dropout(y, training=self.training)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_an_attention_kind_is_found_by_its_check(fault: str) -> None:
    assert list(CHECKS["attention"]) == FAULTS
    found = {name: error for name, error in run_checks("attention", FaultyConfig(fault=fault), {}) if error}
    assert fault in found
    assert found[fault].where == f"attention 'faulty', {fault}" and found[fault].remedy


def test_its_twin_without_a_fault_passes_by_name_and_by_config() -> None:
    check("attention", "faulty", num_attention_heads=2, num_key_value_heads=1)
    check("attention", FaultyConfig())
    with pytest.raises(ConformanceError, match="attention 'faulty', cached: the results differ by up to"):
        check("attention", "faulty", fault="cached")
    with pytest.raises(ConfigError, match="unknown kind 'faultty'\n  Did you mean 'faulty'"):
        check("attention", "faultty")
    with pytest.raises(ConfigError, match="chat takes no options here: tokens"):
        check("chat", "deepseek", tokens=3)
    with pytest.raises(ConfigError, match="'attentions' cannot be checked\n  Did you mean 'attention'"):
        check("attentions", "gqa")


LATENT = {"num_attention_heads": 2, "q_lora_rank": 10, "kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4}
OWN: list[tuple[str, str, dict[str, Any]]] = [
    ("attention", "dsa", LATENT | {"v_head_dim": 5, "index_n_heads": 3, "index_head_dim": 10, "index_topk": 7}),
    ("ffn", "dense", {"intermediate_size": 12}),
    ("router", "grouped_topk", {"n_routed_experts": 6, "num_experts_per_tok": 2}),
    ("block", "pre_norm", {}),
    ("optimizer", "adamw", {"weight_decay": 0.1}),
    ("optimizer", "muon", {}),
    ("objective", "next_token", {}),
    ("objective", "mtp", {}),
    ("objective", "sequence_balance", {}),
    ("objective", "grpo", {}),
    ("objective", "distil", {}),
    ("objective", "sparse", {}),
    ("chat", "deepseek", {}),
    ("chat", "deepseek-v3", {}),
    ("chat", "deepseek-r1", {}),
    ("task", "families", {}),
    ("task", "everyday", {}),
]


@pytest.mark.parametrize(("part", "kind", "options"), OWN, ids=lambda value: value if isinstance(value, str) else "")
def test_own_kinds_pass(part: str, kind: str, options: dict[str, Any]) -> None:
    check(part, kind, **options)


# ---- the nearest faulty twins


class Forgetful(AdamWConfig):
    kind: Literal["forgetful"] = "forgetful"  # type: ignore[assignment]

    def build(self, params: dict[str, nn.Parameter]) -> Optimizer:
        return ForgetfulAdamW(self, params)


class ForgetfulAdamW(AdamW):
    def load(self, state: dict[str, Tensor]) -> None:
        super().load({name: torch.zeros_like(t) if name.startswith("exp_avg/") else t for name, t in state.items()})


class MeanOfBatch(NextToken):
    """Divides by itself, as a loss of transformers did."""

    kind: Literal["mean_of_batch"] = "mean_of_batch"  # type: ignore[assignment]

    def term(self, model: Decoder, batch: TrainBatch, output: DecoderOutput) -> LossTerm:
        return LossTerm(super().term(model, batch, output).sum / self.weight(batch))


class Torn(NextToken):
    """A loss over pairs of rows."""

    kind: Literal["torn"] = "torn"  # type: ignore[assignment]

    def weight(self, batch: TrainBatch) -> float:
        return float(len(batch.tokens))

    def term(self, model: Decoder, batch: TrainBatch, output: DecoderOutput) -> LossTerm:
        rows = model.logits(output.hidden).mean((1, 2))
        return LossTerm(
            (rows - rows.roll(1)).square().sum() if len(rows) % 2 else (rows[::2] - rows[1::2]).square().sum()
        )


class Whole(Torn):
    kind: Literal["whole"] = "whole"  # type: ignore[assignment]
    rows_together: ClassVar[int] = 2


class Impatient(DeepSeekChat):
    """Its reader gives the last delta as soon as it has one."""

    name = "impatient"

    def reader(self, *given: Any, **more: Any) -> ReplyReader:
        reader = super().reader(*given, **more)
        feed = reader.feed
        reader.feed = lambda *ids: feed(*ids) if len(ids) > 1 else ReplyDelta()  # type: ignore[method-assign]
        return reader


class Stripping(DeepSeekChat):
    name = "stripping"

    def normalized(self, message: Message, thinking: Thinking = "auto") -> Message:
        return Message("assistant", message.text.strip(), message.reasoning)


class Moody(Task):
    name = "moody"

    def __init__(self, fault: str = "") -> None:
        self.fault, self.graded = fault, 0

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        for n in range(30):
            self.graded += self.fault == "problems"
            yield Problem(f"{split} {n + self.graded}", f"after {n}", str(n + 1), "moody")

    def grade(self, problem: Problem, reply: str) -> Verdict:
        self.graded += 1
        if (self.fault == "lenient" and not reply) or (self.fault == "grades" and reply == "10" and self.graded % 2):
            return Verdict.RIGHT
        return Verdict.RIGHT if reply == problem.answer else Verdict.WRONG


TOKENS = Tokenizer.byte_level()
FAULTY: list[tuple[str, Any, str]] = [
    ("optimizer", Forgetful(), "the parameters .* have other bits"),
    ("objective", MeanOfBatch(), "the losses of 1 and 2 micro-batches differ"),
    ("objective", Torn(), "the losses of 1 and . micro-batches differ"),
    ("chat", Impatient(TOKENS), "impatient"),
    ("chat", Stripping(TOKENS), "is parsed as"),
    ("task", Moody("problems"), "differ the second time"),
    ("task", Moody("grades"), "differ the second time"),
    ("task", Moody("lenient"), "an empty reply is graded as right"),
]
SOUND: Sequence[tuple[str, Any]] = [("objective", Whole()), ("task", Moody()), ("chat", DeepSeekChat(TOKENS))]


@pytest.mark.parametrize(("part", "kind", "message"), FAULTY, ids=lambda value: type(value).__name__)
def test_a_faulty_twin_is_refused(part: str, kind: Any, message: str) -> None:
    with pytest.raises(ConformanceError, match=message):
        check(part, kind)


@pytest.mark.parametrize(("part", "kind"), SOUND)
def test_a_sound_twin_passes(part: str, kind: Any) -> None:
    check(part, kind)


def test_the_command_prints_each_check_and_exits_by_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[1] / "fixtures" / "mine.py").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-m", "rorqual.conformance", *words]
        return subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = command("plugins=./mine.py", "attention=my_attention", "qk_norm=true")
    assert (done.returncode, done.stdout.split("\n")[0]) == (0, "ok      packed"), done.stderr
    done = command("plugins=./mine.py", "objective=my_pairs")
    assert (done.returncode, done.stdout) == (0, "ok      micro-batches\n"), done.stderr
    assert main(["objective=aux_balance"]) == 1
    assert capsys.readouterr().out.startswith("FAILED  micro-batches: the losses of 1 and 2 micro-batches")
    assert main(["attention=no_attention"]) == 2 and "unknown kind 'no_attention'" in capsys.readouterr().err
