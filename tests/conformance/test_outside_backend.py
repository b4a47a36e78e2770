"""A backend of a user's own is found by name; it serves, restores from disk, evaluates, trains. Where it cannot, nothing runs instead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fused import Fused, Whole
from torch import Tensor
from transposed import Permuted, Transposed, TransposedLinear

from rorqual.cli.eval_settings import EvalSettings, load_engine_or_client
from rorqual.cli.evaluating import _load_engine, loss_on_text
from rorqual.cli.generating import GenerateSettings, _local_engine, _settings_of_replies
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.engine.embeds import Embeds
from rorqual.engine.request import Grammar
from rorqual.engine.rollout_engine import InlineRolloutEngine
from rorqual.generate.prompts import PromptFile
from rorqual.generate.schema import RowSampling
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.ops.backends import backend, backend_cache_id
from rorqual.ops.backends.attention import PAD, AttentionMetadata, AttentionPlan, PagedAttention
from rorqual.ops.backends.layout_check import find_layout_error
from rorqual.ops.backends.torch_invariant import TorchInvariant
from rorqual.ops.paged import BLOCK
from rorqual.recipes.pretrain import pretrain
from rorqual.train.loop import fit
from rorqual.train.run import Run
from rorqual.train.sources.sampler import RolloutSampler
from rorqual.train.sources.source import SourceInputs

MLA = MLAConfig(
    num_attention_heads=2, q_lora_rank=12, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=12
)
GQA = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_bias=True)
MOE = MoEConfig(n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=16, n_shared_experts=1)


def model_of(*, tied: bool = False) -> Decoder:
    stages = (
        Stage(layers=1, attention=GQA, ffn=DenseConfig(intermediate_size=48)),
        Stage(layers=1, attention=MLA, ffn=MOE),
    )
    config = ModelConfig(
        vocab_size=BASE_VOCAB,
        hidden_size=32,
        stages=stages,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=tied,
    )
    return build(config, seed=1)


def engine_of(model: Decoder, **settings: Any) -> Engine:
    tokenizer = Tokenizer.byte_level()
    return Engine.of(model, tokenizer, chat_format(tokenizer, "deepseek"), **settings)


def answers(engine: Engine) -> list[Completion]:
    requests = [
        Request(
            prompt_ids=tuple(range(40, 52 + 70 * i)),
            params=SamplingParams(max_tokens=24, seed=i, ignore_eos=True, n=1 + i, temperature=0.5 * i),
        )
        for i in range(2)
    ]
    return [one for group in engine.generate(requests) for one in group]


@pytest.mark.parametrize("tied", [False, True], ids=["head", "tied"])
def test_it_serves_what_the_packages_own_serve(tied: bool) -> None:
    model = model_of(tied=tied)
    Transposed.used.clear()
    expected = answers(engine_of(model, backend="torch", pack=True))
    assert not Transposed.used
    engine = engine_of(model, backend="transposed", pack=True)
    found = answers(engine)
    assert set(Transposed.used) == {"columns", "sample"}
    maps = [m for m in engine.model.modules() if isinstance(m, TransposedLinear)]
    assert len(maps) == 2 * 2 + 3 + 2 + 1, (
        "fused and output maps of both attentions, queries of latents, networks, the head"
    )
    assert isinstance(engine.model.lm_head, TransposedLinear), "a tied head, too, is the copy's own"
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), rtol=0, atol=1e-4)
    assert not engine.invariant, "it promises nothing"


ASKED = {
    "greedy": SamplingParams(max_tokens=12, temperature=0),
    "a seed": SamplingParams(max_tokens=12, seed=3, temperature=1.0),
    "another seed": SamplingParams(max_tokens=12, seed=4, temperature=1.0),
    "samples": SamplingParams(max_tokens=12, seed=3, temperature=1.0, n=3),
    "cuts": SamplingParams(max_tokens=12, seed=5, temperature=1.3, top_k=20, top_p=0.9, min_p=0.05),
    "said before": SamplingParams(
        max_tokens=30, seed=6, temperature=1.0, repetition_penalty=1.4, frequency_penalty=1.0, presence_penalty=0.5
    ),
    "biases": SamplingParams(max_tokens=12, seed=7, temperature=1.0, logit_bias=((70, 6.0), (71, -100.0))),
    "a grammar": SamplingParams(max_tokens=40, seed=8, temperature=1.0, grammar=Grammar("regex", "[a-f]{9,30}")),
    "not too short": SamplingParams(
        max_tokens=40, min_tokens=25, seed=9, temperature=1.0, grammar=Grammar("regex", "[a-f]{0,30}")
    ),
    "likeliest": SamplingParams(max_tokens=12, seed=10, temperature=1.0, top_logprobs=4),
    "the prompt's": SamplingParams(max_tokens=4, seed=11, temperature=1.0, prompt_logprobs=2),
}


def test_a_step_that_it_fuses_is_given_all_that_a_reply_depends_on() -> None:
    """The same replies as operation by operation, all requests in one batch: ids, log-probabilities, experts, kept sets, likeliest tokens."""
    model = model_of()
    rows = torch.randn(70, 32, generator=torch.Generator().manual_seed(1)).numpy()
    requests = [
        Request(prompt_ids=tuple(range(40 + i, 150 + 7 * i)), params=params) for i, params in enumerate(ASKED.values())
    ]
    requests += [
        Request(
            prompt_ids=tuple(range(40, 150)),
            params=ASKED["a seed"],
            embeds=Embeds(rows, tuple(range(20, 90))),
        )
    ]
    Fused.used.clear()
    found, expected = (
        [one for group in engine_of(model, backend=name, record_kept=True).generate(requests) for one in group]
        for name in ("fused", "transposed")
    )
    assert Fused.used.count("step") > 20
    assert len({tuple(one.token_ids) for one in expected[:6]}) == 6
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids and one.finish_reason == other.finish_reason
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), rtol=0, atol=1e-4)
        assert one.experts is not None and other.experts is not None and torch.equal(one.experts, other.experts)
        assert one.kept is not None and other.kept is not None and np.array_equal(one.kept, other.kept)
        assert likeliest(one.top_logprobs) == likeliest(other.top_logprobs)
        assert likeliest(one.prompt_top_logprobs) == likeliest(other.prompt_top_logprobs)
        assert (one.prompt_logprobs or [0.0])[1:] == pytest.approx((other.prompt_logprobs or [0.0])[1:], abs=1e-4)


def likeliest(places: list[list[tuple[int, float]]] | None) -> list[list[int]]:
    return [[id_ for id_, _ in best] for best in places or []]


def test_its_blocks_are_found_on_disk_and_no_others(tmp_path: Path) -> None:
    model, request = model_of(), Request(prompt_ids=tuple(range(40, 240)), params=SamplingParams(max_tokens=8))
    said = {}
    for turn, name in enumerate(("transposed", "transposed", "torch", "transposed")):
        engine = engine_of(model, backend=name, pack=True, reuse=True, cache_dir=tmp_path)
        [[found]] = engine.generate([request])
        said[turn] = found.token_ids
        assert engine.stats()["blocks_restored"] == (3 if turn in (1, 3) else 0), turn
        engine.close()
    assert said[0] == said[1] == said[3]


def test_what_it_cannot_run_is_refused_and_its_twin_is_run() -> None:
    engine_of(model_of(), backend="transposed")
    with pytest.raises(
        ConfigError, match=r"backend=transposed cannot run this model: it computes in float32, not in torch\.bf"
    ):
        engine_of(model_of().bfloat16(), backend="transposed")
    with pytest.raises(ConfigError, match="unknown backend 'transpose'") as caught:
        engine_of(model_of(), backend="transpose")
    assert "transposed" in caught.value.remedy


def tiny(folder: Path, **changes: Any) -> Run:
    file = folder / "text.txt"
    file.write_text("".join(f"{a} and {b} make {a + b}. " for a in range(40) for b in range(10)), encoding="utf-8")
    return pretrain(data=str(file), size="tiny", steps=4, rows=2, row=32).model_copy(update=changes)


def test_it_trains_and_evaluates_by_name(tmp_path: Path) -> None:
    losses = {}
    for name in ("torch", "transposed", "torch-invariant"):
        records: list[Any] = []
        state = fit(tiny(tmp_path, backend=name), RunDir(tmp_path / name), quiet=True, observe=records.append)
        losses[name] = [record["loss"] for record in records if "loss" in record]
        assert type(state.model.ops) is type(backend(name))
    assert len(losses["torch"]) == 4 and losses["transposed"] == pytest.approx(losses["torch"], rel=1e-4)
    for name in ("transposed", "torch"):
        engine = load_engine_or_client(str(tmp_path / "torch"), EvalSettings(task="families", backend=name))
        assert type(engine._cores[0].runner.backend).__mro__[0:2].count(type(backend(name))) == 1
        made = _local_engine(GenerateSettings(run=str(tmp_path / "torch"), backend=name, raw=True, out="out.jsonl"))
        assert made.config.backend == name
    refused = tiny(tmp_path, backend="transposed", dtype="bfloat16")
    with pytest.raises(ConfigError, match="transposed cannot train this model: it computes in float32"):
        fit(refused, RunDir(tmp_path / "refused"), quiet=True)


LOUDER = """
from rorqual.ops.backends.torch_invariant import TorchInvariant

class Louder(TorchInvariant):
    name = "louder"

    def rms_norm(self, x, weight, eps):
        return 100 * super().rms_norm(x, weight, eps)
"""


def test_texts_are_scored_by_the_backend_that_was_named(tmp_path: Path) -> None:
    fit(tiny(tmp_path), RunDir(tmp_path / "run"), quiet=True)
    (tmp_path / "text.txt").write_text("".join(f"{n} squared is {n * n}. " for n in range(900)))
    (tmp_path / "mine.py").write_text(LOUDER)
    losses = dict[str, float]()
    for name in (louder := f"{tmp_path / 'mine.py'}:Louder", "torch-invariant", "torch", "transposed"):
        settings = EvalSettings(data=str(tmp_path / "text.txt"), backend=name, out=str(tmp_path / "loss.json"))
        losses[name] = round(loss_on_text(str(tmp_path / "run"), settings).per_token, 4)
        assert abs(losses[name] - losses[louder]) > 0.01 or name == louder
    assert losses["torch"] == losses["transposed"] == losses["torch-invariant"]
    assert abs(losses[louder] - losses["torch"]) > 0.01


def test_a_backend_in_a_file_is_known_by_what_stands_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One relative name in two folders is two backends, and one file in two folders has one arithmetic."""
    for folder, factor in (("one", "100"), ("other", "3"), ("copy", "100")):
        (tmp_path / folder).mkdir()
        text = LOUDER.replace("100", factor).replace('"louder"', '"quieter"' if folder == "other" else '"loudest"')
        (tmp_path / folder / "mine.py").write_text(text)
    fit(tiny(tmp_path), RunDir(tmp_path / "run"), quiet=True)
    (prompts := tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    mine, restored, given, names = "./mine.py:Louder", [], [], []
    for folder in ("one", "other", "one"):
        monkeypatch.chdir(tmp_path / folder)
        engine = engine_of(model_of(), backend=mine, reuse=True, cache_dir=tmp_path / "cache")
        given.append([one.token_ids for one in answers(engine)])
        restored.append(engine.stats()["blocks_restored"])
        engine.close()
        run = Run.model_validate(tiny(tmp_path).model_dump() | {"backend": mine})
        assert run.backend == f"{tmp_path / folder / 'mine.py'}:Louder"
        made = _settings_of_replies(
            GenerateSettings(run="x", backend=mine, out="out.jsonl"), RowSampling(), PromptFile.open(prompts)
        )["backend"]
        evaluated = _load_engine(str(tmp_path / "run"), EvalSettings(task="families", backend=mine))[1]["backend"]
        assert made == evaluated == backend_cache_id(mine)
        names.append(made)
    assert given[0] == given[2] != given[1] and restored[:2] == [0, 0] and restored[2] > 0
    monkeypatch.chdir(tmp_path / "copy")
    assert names[0] == names[2] == backend_cache_id(mine) != names[1]


# ---- what would go wrong without a word


@pytest.mark.parametrize("method", ["plan", "shape", "as_blocks", "prepack_blocks", "read", "fill", "write"])
def test_a_layout_of_which_one_method_is_left_as_it_was_is_refused(method: str) -> None:
    assert find_layout_error(Permuted()) is None
    half = type("Half", (Permuted,), {method: getattr(PagedAttention, method)})
    assert find_layout_error(half())


def test_a_numbering_that_moves_block_0_or_the_slot_of_nobody_is_refused() -> None:
    class Moves(Permuted):
        def plan(
            self, metadata: AttentionMetadata, device: torch.device, last: AttentionPlan | None = None
        ) -> AttentionPlan:
            slots = np.where(metadata.slot_mapping == PAD, 3 * BLOCK, metadata.slot_mapping)
            return super().plan(replace(metadata, slot_mapping=slots), device, last)

    assert find_layout_error(Moves()) is not None

    class Nearsighted(Permuted):
        """It drops one of the limits that a layer sets."""

        dropped = ""

        def attend_with_lse(self, *given: Any, **limits: Any) -> tuple[Tensor, Tensor]:
            return super().attend_with_lse(*given, **limits | {self.dropped: None})

    for dropped in ("window", "selected"):
        Nearsighted.dropped = dropped
        assert find_layout_error(Nearsighted()) is not None, dropped

    class NoGradient(Permuted):
        def prepack_blocks(self, blocks: Tensor) -> Tensor:
            return super().prepack_blocks(blocks.detach())

    assert find_layout_error(NoGradient()) == "`prepack_blocks` passes no gradient"


MINE = """
from rorqual.ops.backends import Backend
from rorqual.ops.backends.attention import PagedAttention

class Half(PagedAttention):
    def shape(self, blocks, heads, rows, width):
        return (blocks, rows, heads, width)

class Mine(Backend):
    name = "mine"

class Broken(Backend):
    name = "broken"
    attention = Half()

class Nameless(Backend):
    pass
"""


def test_a_file_names_a_backend(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE, encoding="utf-8")
    engine = engine_of(model_of(), backend=f"{file}:Mine")
    assert type(engine._cores[0].runner.backend).__name__ == "Mine" and backend("mine").name == "mine"
    for name, message in (
        ("Other", "defines no backend 'Other'"),
        ("Broken", "the attention methods of Broken disagree about the block layout"),
        ("Nameless", "backend 'Nameless' does not set `name`"),
    ):
        with pytest.raises(ConfigError, match=message):
            backend(f"{file}:{name}")
    with pytest.raises(ConfigError, match="no such file"):
        backend(f"{tmp_path}/none.py:Mine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampled": None}, r"must return ids of shape \[1\] for a step, but returned none"),
        ({"experts": None}, r"must return experts of shape \[.*\] for a step, but returned none"),
        (
            {"hidden": torch.zeros(1, 32)},
            r"must return hidden states of shape \[.*\] for a step, but returned shape \[1, 32\]",
        ),
    ],
)
def test_a_step_that_lacks_something_is_an_error_by_name(
    change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Whole.__call__
    monkeypatch.setattr(Whole, "__call__", lambda self, given: replace(whole(self, given), **change))
    engine = engine_of(model_of(), backend="fused")
    with pytest.raises(ValueError, match=f"backend 'fused' {message}"):
        engine.generate([Request(prompt_ids=tuple(range(40, 60)), params=SamplingParams(max_tokens=3))])


def test_reinforcement_samples_by_the_runs_own_backend() -> None:
    for name, expected in (("torch", TorchInvariant), ("transposed", Transposed)):
        model = backend(name).bind(model_of())
        tokenizer = Tokenizer.byte_level()
        materials = SourceInputs(
            model=model, tokenizer=tokenizer, chat=chat_format(tokenizer, "deepseek"), seed=0, threads=1
        )
        engine = RolloutSampler(materials).engine
        assert isinstance(engine, InlineRolloutEngine)
        assert type(engine.engine._cores[0].runner.backend) is expected
