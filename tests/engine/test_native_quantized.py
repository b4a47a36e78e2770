"""Weights of 8 and 4 bits in the native backend: the product by its definition, the same bits in every batch, on any number of threads and on
every instruction set, and answers near those of the weights themselves."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from adapted import write_base
from hypothesis import given, settings
from schedules import make_pool
from test_native import bits, engine, models_with_kernels, prompts, usable
from test_same_bits import run_all
from trained import CONTEXT, in_type, text

from rorqual.core.errors import ConfigError, NumericsError
from rorqual.data.chat import ChatFormat, chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine, Request, SamplingParams
from rorqual.engine.native import native_backend
from rorqual.engine.native.native_backend import QUANTIZED
from rorqual.engine.native.panels import PanelLinear
from rorqual.model import Decoder
from rorqual.ops.backends import REFERENCE

Floats = npt.NDArray[np.float32]
INT8, INT4 = QUANTIZED["int8"], QUANTIZED["int4"]
BACKENDS = pytest.mark.parametrize("backend", [INT8, INT4], ids=["int8", "int4"])
QUANTS = 32


# ---- the product


def in_blocks(values: Floats) -> Floats:
    """Values [rows, in] as [rows, blocks, 32], the last block filled with zeros."""
    return np.pad(values, ((0, 0), (0, -values.shape[1] % QUANTS))).reshape(len(values), -1, QUANTS)


def definition(x: Floats, weight: Floats, bias: Floats | None) -> Floats:
    """Round blocks to 8 bits by their largest value. Sums over a block are exact, and are added from the first block to the last, each with
    one rounding."""
    blocks = in_blocks(weight)
    scales = (abs(blocks).max(-1) / np.float32(127)).astype(np.float16).astype(np.float32)
    whole = np.clip(np.rint(blocks / np.where(scales, scales, np.inf)[..., None]), -127, 127)
    inputs = in_blocks(x)
    highest = abs(inputs).max(-1)
    rounded = np.rint(inputs * (np.float32(127) / np.where(highest, highest, np.inf))[..., None])
    y = np.zeros((len(x), len(weight)), np.float32)
    for block in range(blocks.shape[1]):
        exact = rounded[:, block].astype(np.int64) @ whole[:, block].astype(np.int64).T
        scale = scales[:, block] * (highest[:, block] / np.float32(127))[:, None]
        y = (scale.astype(np.float64) * exact + y).astype(np.float32)
    return y if bias is None else y + bias


def stored_in_4_bits(made: PanelLinear) -> tuple[Floats, Floats, Floats]:
    """The quants [out, blocks, 32], scales and least weights [out, blocks] in the bytes of panels, by `csrc/quantized.h`."""
    panels = made._panels.numpy()
    halves = panels[:, :, 1024:].copy().view(np.float16).astype(np.float32)  # [panels, blocks, 128]
    quants = np.zeros((len(panels) * 64, panels.shape[1], QUANTS), np.float32)
    for output, place in np.ndindex(len(quants), QUANTS):
        group, panel = place // 4, output // 64
        both = panels[panel, :, group % 4 * 256 + output % 64 * 4 + place % 4]
        quants[output, :, place] = both & 15 if group < 4 else both >> 4
    scales, least = (half.transpose(0, 2, 1).reshape(len(quants), -1) for half in np.split(halves, 2, axis=2))
    return tuple(part[: made.out] for part in (quants, scales, least))  # type: ignore[return-value]


def definition_in_4_bits(x: Floats, made: PanelLinear, bias: Floats | None) -> Floats:
    quants, scales, least = stored_in_4_bits(made)
    inputs = in_blocks(x)
    highest = abs(inputs).max(-1)
    rounded = np.rint(inputs * (np.float32(127) / np.where(highest, highest, np.inf))[..., None]).astype(np.int64)
    y = np.zeros((len(x), made.out), np.float32)
    for block in range(quants.shape[1]):
        exact, sums = rounded[:, block] @ quants[:, block].astype(np.int64).T, rounded[:, block].sum(-1)[:, None]
        scale = (highest[:, block] / np.float32(127))[:, None]
        y = ((least[:, block] * scale).astype(np.float64) * sums + y).astype(np.float32)
        y = ((scales[:, block] * scale).astype(np.float64) * exact + y).astype(np.float32)
    return y if bias is None else y + bias


def random_map(seed: int) -> tuple[Floats, Floats, Floats | None]:
    """Inputs of 1 to 9 rows, a weight and perhaps a bias. Blocks differ in size by far, some are zero, and some have no negative values."""
    rng = np.random.default_rng(seed)
    rows, width, out = rng.integers(1, (10, 201, 201))
    x, weight = (
        (rng.standard_normal((n, width)) * 10.0 ** rng.integers(-3, 3, (n, 1))).astype(np.float32) for n in (rows, out)
    )
    weight[:, width // 2 :] *= np.float32(0.01)
    x[rng.random(rows) < 0.2] = 0
    weight[rng.random(out) < 0.2] = 0
    if seed % 3 == 0:
        x, weight = abs(x), abs(weight)
    return x, weight, rng.standard_normal(out).astype(np.float32) if seed % 2 else None


def test_a_product_is_the_definition_on_each_instruction_set(force: Callable[[str], None]) -> None:
    for name in usable():
        force(name)
        for seed in range(150):
            x, weight, bias = random_map(seed)
            made = PanelLinear(torch.tensor(weight), None if bias is None else torch.tensor(bias), bits=8)
            found = made(torch.tensor(x)).numpy()
            assert np.array_equal(found, definition(x, weight, bias)), (name, seed)
            alone = np.concatenate([made(torch.tensor(row[None])).numpy() for row in x])
            assert np.array_equal(alone, found), (name, seed)


def test_a_product_in_4_bits_is_its_definition_on_each_instruction_set(force: Callable[[str], None]) -> None:
    for name in usable():
        force(name)
        for seed in range(50):
            x, weight, bias = random_map(seed)
            made = PanelLinear(torch.tensor(weight), None if bias is None else torch.tensor(bias), bits=4)
            found = made(torch.tensor(x)).numpy()
            assert np.array_equal(found, definition_in_4_bits(x, made, bias)), (name, seed)
            alone = np.concatenate([made(torch.tensor(row[None])).numpy() for row in x])
            assert np.array_equal(alone, found), (name, seed)


def test_weights_on_a_grid_of_4_bits_stay_as_they_are() -> None:
    """So a model in GGUF's Q4_0 or Q4_1 loses nothing. The grid is used to both ends, as by these formats."""
    rng = np.random.default_rng(0)
    steps = rng.integers(0, 16, (70, 3, QUANTS))
    steps[..., 0], steps[..., 1] = 0, 15
    scales, least = (rng.standard_normal((2, 70, 3, 1)) * [[[[0.01]]], [[[0.1]]]]).astype(np.float16).astype(np.float32)
    weight = (steps * abs(scales) + least).astype(np.float32)
    made = PanelLinear(torch.tensor(weight.reshape(70, -1)), None, bits=4)
    np.testing.assert_allclose(made.weight.numpy(), weight.reshape(70, -1), rtol=0, atol=2e-6)


def test_4_bits_are_at_least_as_near_as_plain_rounding() -> None:
    _, weight, _ = random_map(4)
    made = PanelLinear(torch.tensor(weight), None, bits=4)
    quants, scales, least = stored_in_4_bits(made)
    kept = (quants * scales[..., None] + least[..., None]).reshape(len(weight), -1)[:, : weight.shape[1]]
    np.testing.assert_array_equal(made.weight.numpy(), kept)
    blocks = in_blocks(weight)
    low, high = blocks.min(-1, keepdims=True), blocks.max(-1, keepdims=True)
    step = (high - low) / 15
    plain = (np.rint((blocks - low) / np.where(step, step, 1)) * step + low).reshape(len(weight), -1)[
        :, : weight.shape[1]
    ]
    assert ((kept - weight) ** 2).sum() < 0.95 * ((plain - weight) ** 2).sum()


def test_the_largest_and_smallest_values_stay_exact(force: Callable[[str], None]) -> None:
    """All quants are 127 or -127, which is where 16 bits are too few for a pair of products."""
    for name in usable():
        force(name)
        for sign, other in ((1, 1), (1, -1), (-1, -1)):
            for size in (8, 4):
                made = PanelLinear(torch.full((70, 96), 127.0 * sign), None, bits=size)
                assert (made(torch.full((3, 96), 127.0 * other)) == sign * other * 96 * 127**2).all()
                assert (made(torch.full((3, 96), 1e-38 * other)) == 0).all(), (
                    "127 divided by the largest would be infinite"
                )


def test_the_weight_of_a_map_is_what_the_kernels_read() -> None:
    """A column of it is the answer to a unit vector, which 8 bits hold."""
    _, weight, _ = random_map(4)
    made = PanelLinear(torch.tensor(weight), None, bits=8)
    found = made(torch.eye(weight.shape[1])).T
    torch.testing.assert_close(made.weight, found, rtol=1e-6, atol=0)
    largest = torch.tensor(abs(in_blocks(weight)).max(-1)).repeat_interleave(QUANTS, 1)[:, : weight.shape[1]]
    error = (made.weight - torch.tensor(weight)).abs()
    assert (error <= 0.56 / 127 * largest + 127 * 2**-25).all(), (
        "half a step, and the rounding of a scale to half precision"
    )


def test_a_value_that_is_not_finite_spoils_its_row_alone(force: Callable[[str], None]) -> None:
    for name in usable():
        force(name)
        for bad in (torch.nan, torch.inf, -torch.inf):
            x = torch.randn(5, 70)
            x[2, 40] = bad
            for size in (8, 4):
                found = PanelLinear(torch.randn(10, 70), None, bits=size)(x).isfinite()
                assert found[[0, 1, 3, 4]].all() and not found[2].any()


# ---- whole steps


@pytest.mark.usefixtures("one_thread")
@BACKENDS
@pytest.mark.parametrize("kind", ["mla", "gqa"])
def test_random_schedules_change_no_bit(kind: str, backend: str, models: dict[str, Decoder], tmp_path: Path) -> None:
    run_all(make_pool(in_type(models[kind], "bf16"), seed=1, pack=True, backend=backend), range(1), tmp_path)


@BACKENDS
@pytest.mark.parametrize("kind", ["mla", "gqa"])
def test_threads_and_instruction_sets_change_no_bit(
    kind: str,
    backend: str,
    models: dict[str, Decoder],
    tokenizer: Tokenizer,
    chat: ChatFormat,
    force: Callable[[str], None],
) -> None:
    model = in_type(models[kind], "bf16")
    before, found = torch.get_num_threads(), []
    for name in usable():
        force(name)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(bits(engine(model, tokenizer, chat, backend=backend, pack=True), prompts(3)))
    torch.set_num_threads(before)
    assert all(one == found[0] for one in found)
    assert found[0] != bits(engine(model, tokenizer, chat), prompts(3))


@BACKENDS
@pytest.mark.parametrize("kind", ["mla", "gqa"])
def test_answers_are_near_those_of_float32(
    kind: str, backend: str, models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat
) -> None:
    """On text that the model was not trained on. KL measured: 5e-5 and 4e-5, with 4 bits 1.4e-3 and 2.7e-3. A step rounds the same, but for
    ties and for the inputs of experts: measured 1e-3 and 4e-4 on the mean."""
    made = engine(in_type(models[kind], "fp32"), tokenizer, chat, backend=backend, pack=True)
    plain = in_type(models[kind], "fp32")
    plain.ops = REFERENCE
    ids = torch.tensor([tokenizer.encode(text(random.Random(seed), CONTEXT))[:CONTEXT] for seed in range(90, 94)])
    with torch.no_grad():
        exact, found = (
            model.logits(model(ids).hidden).double().log_softmax(-1) for model in (plain, made.scoring_model)
        )
    kl = (exact.exp() * (exact - found)).sum(-1).mean()
    least, most = (1e-6, 3e-4) if backend == INT8 else (1e-4, 1e-2)
    assert least < kl < most
    asked = [
        Request(prompt_ids=tuple(row), params=SamplingParams(max_tokens=1, prompt_logprobs=0))
        for row in ids[:, :-1].tolist()
    ]
    for row, logprobs, [completion] in zip(ids, found, made.generate(asked), strict=True):
        of_steps = torch.tensor((completion.prompt_logprobs or [])[1:])
        of_passes = logprobs[:-2].gather(1, row[1:-1, None])[:, 0]
        assert (of_steps - of_passes).abs().mean() < 4e-3


@settings(max_examples=15, report_multiple_bugs=False)
@given(models_with_kernels())
def test_any_model_answers_alike_in_a_batch_and_alone(model: Decoder) -> None:
    """Widths are no multiples of a block, and experts have few rows."""
    tokenizer = Tokenizer.byte_level()
    requests = [
        Request(
            prompt_ids=tuple((37 * i + 11 * n) % 256 for i in range(n)),
            params=SamplingParams(max_tokens=4, ignore_eos=True, prompt_logprobs=0),
        )
        for n in (90, 3, 17)
    ]
    together, alone = (
        engine(model, tokenizer, chat_format(tokenizer), backend=INT8, pack=True, record_experts=True) for _ in range(2)
    )
    assert bits(together, requests) == [one for request in requests for one in bits(alone, [request])]


# ---- the setting


@pytest.fixture
def run(models: dict[str, Decoder], tmp_path: Path) -> Path:
    write_base(tmp_path / "run", models["mla"])
    return tmp_path / "run"


def test_auto_is_native_if_it_runs_the_model(
    run: Path, models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(**settings: Any) -> str:
        return Engine(run, **settings).config.backend

    assert (chosen(), chosen(dtype="bfloat16"), chosen(dtype="float64")) == ("native", "native", "torch-invariant")
    assert (chosen(dtype="int8"), chosen(dtype="int4"), chosen(pack=False)) == (INT8, INT4, "native")
    lent = [Engine.of(models["mla"], tokenizer, chat, **more).config.backend for more in ({}, {"backend": "auto"})]
    assert lent == ["torch-invariant", "native"]
    monkeypatch.setattr(native_backend, "instruction_set", lambda: None)
    assert chosen() == "torch-invariant"


@BACKENDS
def test_quantised_weights_are_a_dtype_of_the_native_backend(
    backend: str, models: dict[str, Decoder], tokenizer: Tokenizer, chat: ChatFormat, tmp_path: Path
) -> None:
    """The embedding and the KV cache are bf16. The weights that were loaded are freed."""
    dtype = backend.removeprefix("native dtype=")
    write_base(tmp_path / "rounded", in_type(in_type(models["mla"], "bf16"), "fp32"))
    run = tmp_path / "rounded"
    for more in ({}, {"backend": "native"}):
        made = Engine(run, dtype=dtype, engine_cores=1, **more)
        same = engine(in_type(models["mla"], "bf16"), tokenizer, chat, backend=backend, pack=True)
        assert bits(made, prompts()) == bits(same, prompts())
    kept = {name for name, part in made.model.named_parameters() if part.ndim > 1}
    assert kept == {"embed_tokens.weight"}
    for other in ("torch-invariant", "torch"):
        with pytest.raises(ConfigError, match=f"dtype={dtype} needs backend=native"):
            Engine(run, dtype=dtype, backend=other)
    with pytest.raises(ConfigError, match="when they are packed"):
        Engine(run, dtype=dtype, pack=False)
    for dtype in ("int16", "uint8"):
        with pytest.raises(ConfigError, match=f"'{dtype}' is not a floating-point type"):
            Engine(run, dtype=dtype, backend="native")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e7])
@pytest.mark.parametrize("name", ["layers.1.attention.o_proj.weight", "layers.2.ffn.experts.down_proj"])
def test_a_weight_that_int8_cannot_hold_is_named(
    name: str, bad: float, models: dict[str, Decoder], tmp_path: Path
) -> None:
    model = in_type(models["mla"], "fp32")
    model.get_parameter(name)[..., 5] = bad
    write_base(tmp_path, model)
    with pytest.raises(NumericsError, match="NaN, infinity") as refused:
        Engine(tmp_path, dtype="int8", backend="native")
    assert refused.value.where == name
    Engine(tmp_path, dtype="bfloat16", backend="native")
