"""Adapters of one base in one batch: each request has the bits that it has alone, and its adapter's merged weights to 1e-5."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapted import write_adapter, write_base
from safetensors.torch import load_file, save_file
from scaled import finish
from schedules import differences
from trained import STAGES, text

sys.path.append(str(Path(__file__).parents[1] / "conformance"))
from fused import Fused

from rorqual.core.errors import ConfigError, DataError, RorqualError
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.model import Decoder, ModelConfig, build
from rorqual.model.adapter import ESFT, LoRA, Tune
from rorqual.model.adapter.bank import AdaptedLinear, AdaptedRows
from rorqual.model.adapter.files import ADAPTER_FILE
from rorqual.ops.paged import BLOCK

pytestmark = pytest.mark.usefixtures("one_thread")
LATENT = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What adapters can target in a model with latent attention: not kv_b_proj, which is multiplied into others."""
ALL = {"gqa": ("all-linear",), "mla": LATENT}
PROMPT = tuple(text(random.Random(1), 2 * BLOCK + 20).encode())


def tunes(kind: str) -> dict[str, LoRA]:
    """Two adapters of one rank and its targets, one of another rank, scale and targets, and one of a rank above all widths."""
    some = LoRA(r=3, alpha=5.0, use_rslora=True, targets=("o_proj", "layers.1.attention." + ALL["mla"][0]))
    fewer = some if kind == "mla" else LoRA(r=3, alpha=5.0, use_rslora=True, targets=("k_proj", "layers.1.ffn.up_proj"))
    wide = LoRA(r=300, targets=("o_proj", "down_proj"))
    return {"one": LoRA(r=8, targets=ALL[kind]), "two": LoRA(r=8, targets=ALL[kind]), "three": fewer, "wide": wide}


Runs = tuple[Path, dict[str, Path], Decoder]


@pytest.fixture(scope="module", params=["gqa", "mla"])
def runs(request: pytest.FixtureRequest, models: dict[str, Decoder], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A base's folder, the checkpoints of its adapters, and the base."""
    folder, model, kind = tmp_path_factory.mktemp("adapters"), models[request.param], request.param
    base = write_base(folder / "base", model)
    named = enumerate(tunes(kind).items())
    return base.parent, {name: write_adapter(folder / name, base, model, n, tune) for n, (name, tune) in named}, model


def engine_of(runs: Runs, *names: str, **options: object) -> Engine:
    engine = Engine(runs[0], **options)  # type: ignore[arg-type]
    for name in names:
        engine.load_adapter(name, runs[1][name])
    return engine


def asked(adapter: str, seed: int = 0, prompt: tuple[int, ...] = PROMPT, **how: object) -> Request:
    params = SamplingParams(max_tokens=6, temperature=1.0, ignore_eos=True, seed=seed, top_logprobs=2, **how)  # type: ignore[arg-type]
    return Request(prompt_ids=prompt, params=params, adapter=adapter)


def alone(runs: Runs, request: Request, **options: object) -> Completion:
    [[found]] = engine_of(runs, *filter(None, [request.adapter]), slots=1, reuse=False, **options).generate([request])
    return found


@pytest.mark.parametrize(
    "how", ["fp32", "packed", "bf16", "plain", "native", "native-bf16", "native-int8", "native-plain"]
)
def test_a_mixed_batch_has_the_bits_of_each_adapter_alone(
    runs: Runs, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one prompt: whole or in chunks, found in the cache or not, in one core or two, whoever joined and left before."""
    if how == "packed":  # every map, however small
        monkeypatch.setattr("rorqual.ops.backends.packed.SMALLEST", 1)
    options: dict[str, object] = {"dtype": "bfloat16"} if how == "bf16" else {"pack": "plain" not in how}
    options["backend"] = "torch-invariant"
    if how.startswith("native"):
        dtype = {"native-bf16": "bfloat16", "native-int8": "int8"}.get(how, "float32")
        options |= {"backend": "native", "dtype": dtype}
    names = ["one", "", "three", "two", "", "one"]
    wanted = [asked(name, seed, PROMPT[: 150 - seed // 2]) for seed, name in enumerate(names)]
    expected = [alone(runs, request, **options) for request in wanted]
    base = Engine(runs[0], slots=1, reuse=False, **options)  # type: ignore[arg-type]
    assert [differences(base.generate([wanted[1]])[0][0], expected[1])] == [[]], "the base's own bits"
    assert len({tuple(found.logprobs) for found in expected}) == len(names)
    engine = engine_of(runs, "two", "one", "three", slots=4, step_tokens=70, **options)
    for _ in range(2):  # the second time from the cache
        ids = [engine.submit(request) for request in wanted]
        found = finish(engine)
        assert [differences(found[i], one) for i, one in zip(ids, expected, strict=True)] == [[]] * len(names)
    assert engine.stats()["hit_tokens"] >= len(names) * BLOCK
    engine.unload_adapter("two")  # the first of its stack, whose places move
    wanted, expected = [asked("one", 9), *wanted[:3]], [alone(runs, asked("one", 9), **options), *expected[:3]]
    cores = [found for [found] in engine_of(runs, "one", "three", slots=2, threads=2, **options).generate(wanted)]
    left = [found for [found] in engine.generate(wanted)]
    assert [differences(a, b) + differences(c, b) for a, b, c in zip(left, expected, cores)] == [[]] * 4


def test_decoding_steps_in_one_call_have_their_adapters(runs: Runs) -> None:
    engine = engine_of(runs, *runs[1], backend="native", slots=8)
    wanted = [asked(name, 1) for name in ("", "three", *runs[1])]
    wanted = [replace(one, params=replace(one.params, top_logprobs=0, max_tokens=20)) for one in wanted]
    ahead = [found for [found] in engine.generate(wanted)]
    ids = [engine.submit(one) for one in wanted]
    single = finish(engine)
    assert [differences(single[i], one) for i, one in zip(ids, ahead, strict=True)] == [[]] * len(wanted)
    assert len({tuple(one.logprobs) for one in ahead}) == len(wanted) - 1


@pytest.mark.parametrize("backend", ["torch-invariant", "native"])
def test_an_adapter_is_its_merged_weights(runs: Runs, backend: str) -> None:
    """To 1e-5 of the largest logit, which its product moves by far more."""
    for name in runs[1]:
        request = asked(name, prompt_logprobs=0)
        adapted, plain = (alone(runs, one, backend=backend) for one in (request, replace(request, adapter="")))
        [[merged]] = Engine(runs[1][name].parent, slots=1, backend=backend).generate([replace(request, adapter="")])
        with torch.no_grad():
            logits = runs[2].logits(runs[2](torch.tensor([PROMPT])).hidden)
        got, near, far = (torch.tensor(c.prompt_logprobs[1:]) for c in (adapted, merged, plain) if c.prompt_logprobs)
        assert (got - near).abs().max() < 1e-5 * logits.abs().max() < 1e-2 * (got - far).abs().max()


def test_a_name_with_other_weights_never_meets_the_blocks_of_the_first(runs: Runs) -> None:
    """Of one prompt and tenant; its twin, the same weights again, finds them."""
    engine, hits = engine_of(runs, "one"), []
    for folder in ("one", "two", "one"):
        engine.unload_adapter("one")
        engine.load_adapter("one", runs[1][folder])
        [[found]] = engine.generate([asked("one")])
        assert differences(found, alone(runs, asked("one") if folder == "one" else asked("two"))) == []
        hits.append(found.usage["prompt_cache_hit_tokens"])
    assert hits == [0, 0, 2 * BLOCK]
    engine.load_adapter("again", runs[1]["one"])  # another name of the same weights shares blocks and matrices
    engine.unload_adapter("one")
    [[found]] = engine.generate([asked("again")])
    assert found.usage["prompt_cache_hit_tokens"] == 2 * BLOCK


def test_an_adapter_in_use_is_not_unloaded_and_one_that_is_not_loaded_answers_nobody(runs: Runs) -> None:
    engine = engine_of(runs, "one", "two")
    request_id = engine.submit(asked("one"))
    engine.step()
    engine.load_adapter("three", runs[1]["three"])
    with pytest.raises(ConfigError, match="1 unfinished requests use adapter 'one'"):
        engine.unload_adapter("one")
    engine.unload_adapter("two")
    assert differences(finish(engine)[request_id], alone(runs, asked("one"))) == []
    engine.unload_adapter("one")
    for act in (
        lambda: engine.submit(asked("one")),
        lambda: engine.generate([asked("one")]),
        lambda: engine.check(asked("one")),
    ):
        with pytest.raises(DataError, match=r"adapter: adapter 'one' is not loaded"):
            act()
    with pytest.raises(ConfigError, match="'one' is not loaded"):
        engine.unload_adapter("one")
    assert differences(engine.generate([asked("")])[0][0], alone(runs, asked(""))) == []


# ---- poisons, each beside its twin


def poison(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(folder / ADAPTER_FILE)
    change(tensors)
    save_file(tensors, folder / ADAPTER_FILE)
    return folder


def other(runs: Runs, to: Path, tune: Tune | None = None) -> Path:
    return write_adapter(to, runs[0] / "step-000001", runs[2], 5, tune)


POISONS: dict[str, tuple[str, Callable[[Runs, Path], Path], str]] = {
    "no adapter": ("gqa", lambda runs, to: write_base(to, runs[2]), "holds no adapter"),
    "nothing": ("gqa", lambda runs, to: to / "step-000001", "holds no adapter"),
    "experts": ("mla", lambda runs, to: other(runs, to, ESFT()), "tune.kind=esft"),
    "stacked": (
        "gqa",
        lambda runs, to: write_adapter(to, runs[1]["one"], runs[2], 5),
        "trained on other weights.*one, step 1",
    ),
    "derived": ("mla", other, r"layers.0.attention.kv_b_proj must be merged.*multiplies"),
    "blocks": ("nsa", other, r"k_compress.\w+ must be merged.*blocks of tokens"),
    "nan": (
        "gqa",
        lambda runs, to: poison(other(runs, to), lambda t: t["layers.1.attention.o_proj.lora_B"][3].fill_(math.nan)),
        "layers.1.attention.o_proj.lora_B contains NaN",
    ),
}


@pytest.mark.parametrize("name", POISONS)
def test_an_adapter_that_the_engine_cannot_add_is_refused(name: str, tmp_path: Path) -> None:
    kind, make, message = POISONS[name]
    model = build(ModelConfig(vocab_size=264, hidden_size=96, stages=STAGES[kind], max_position_embeddings=512), seed=1)
    base = write_base(tmp_path / "base", model)
    right = write_adapter(tmp_path / "one", base, model, 0, LoRA(r=2, targets=("o_proj",)))
    runs = base.parent, {"one": right}, model
    engine = engine_of(runs)
    expected = engine.generate([asked("")])[0][0]
    with pytest.raises(RorqualError, match=message) as caught:
        engine.load_adapter("bad", make(runs, tmp_path / "bad"))
    assert str(tmp_path / "bad") in caught.value.where and caught.value.remedy
    engine.load_adapter("good", right)
    found = [one for [one] in engine.generate([asked("good"), asked("")])]
    assert differences(found[1], expected) == [] != differences(found[0], expected)


def test_engines_that_cannot_hold_adapters_say_why(runs: Runs) -> None:
    """Another adapter of a loaded name, weights of somebody else, weights that were changed, a step in one function."""
    engine = engine_of(runs, "one", pack=False)
    engine.load_adapter("one", runs[1]["one"])
    with pytest.raises(ConfigError, match="another adapter has the name 'one'"):
        engine.load_adapter("one", runs[1]["two"])
    with pytest.raises(ConfigError, match="1 adapters of the present weights"):
        engine.load_weights(runs[2])
    engine.unload_adapter("one")
    engine.load_weights(runs[2])
    for other in (engine, Engine.of(runs[2], engine.tokenizer, engine.chat)):
        with pytest.raises(ConfigError, match="not those of a checkpoint"):
            other.load_adapter("one", runs[1]["one"])
    with pytest.raises(ConfigError, match="fuses steps"):
        Engine(runs[0], backend=Fused.name).load_adapter("one", runs[1]["one"])


def test_a_map_that_reads_other_rows_than_the_tokens_must_say_so() -> None:
    rows = AdaptedRows(3, {}, torch.tensor([0]), torch.tensor([0]))
    adapted = AdaptedLinear(torch.nn.Linear(4, 4), [("layers.0.attention.entry_proj", 0, 4)], [rows], [])
    adapted(torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match=r"entry_proj read 2 rows in a step of 3 tokens.*reads_blocks"):
        adapted(torch.zeros(1, 2, 4))
