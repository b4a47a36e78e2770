"""The command `rorqual quantize`: its figures are those of plain forward passes, its file has the weights that were measured, and its
limits stop it before it writes."""

from __future__ import annotations

import math
import re
from pathlib import Path

import gguf
import pytest
import torch
from sparse_model import BYTES, write_run

from in_process import output_of
from rorqual.convert.gguf import import_gguf
from rorqual.core.records import RunDir
from rorqual.data.passages import KINDS
from rorqual.engine import Engine
from rorqual.model import Decoder, ModelConfig, Stage
from rorqual.model.attention import GQAConfig
from rorqual.model.ffn import DenseConfig
from rorqual.model.load.run_directory import load_run
from rorqual.ops.backends import REFERENCE

LENGTH = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are whole blocks, and a text beside it."""
    place = tmp_path_factory.mktemp("runs")
    attention = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    stage = Stage(layers=2, attention=attention, ffn=DenseConfig(intermediate_size=96))
    model = Decoder(
        ModelConfig(vocab_size=263, hidden_size=64, stages=(stage,), max_position_embeddings=128), REFERENCE
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, tensor in sorted(model.named_parameters()):
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(2 * noise * tensor.shape[-1] ** -0.5 if tensor.dim() > 1 else 1 + 0.2 * noise)
    write_run(place / "run", model)
    (place / "a.txt").write_text("".join(f"{n} eggs and {n * 7} owls. " for n in range(400)), encoding="utf-8")
    return place / "run"


def said(run: Path, *words: str, code: int = 0) -> str:
    return output_of(
        "quantize", str(run), f"data={run.parent / 'a.txt'}", f"length={LENGTH}", *words, "threads=1", code=code
    )


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """Each block of 32 inputs [..., 32] in 8 bits."""
    blocks = tensor.unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    return (torch.round(blocks / scale) * scale).flatten(-2)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_the_figures_are_those_of_plain_forward_passes(dtype: str, run: Path) -> None:
    """The plain passes read the engine's weights, whose error has its own tests, and round the inputs of each linear map."""
    text = said(run, f"dtype={dtype}", "windows=3")
    cells = re.search(r"a\.txt +(\S+) +(\S+) \[.*?\] +(\S+)% \[.*?\] +(\S+)% \[.*?\] +(\S+) +(\S+)", text)
    assert cells, text
    plain, quantized = load_run(RunDir(run)), load_run(RunDir(run))
    packed = Engine(run, dtype=dtype, engine_cores=1).scoring_model
    with torch.no_grad():
        for ours, theirs in zip(quantized.layers, packed.layers, strict=True):
            q, k, v = theirs.attention.fused.weight.split((64, 32, 32))
            parts = {"q_proj": q, "k_proj": k, "v_proj": v, "o_proj": theirs.attention.o_proj.weight}
            for name, weight in parts.items():
                getattr(ours.attention, name).weight.copy_(weight)
            gate, up = theirs.ffn.fused.weight.chunk(2)
            for name, weight in {"gate_proj": gate, "up_proj": up, "down_proj": theirs.ffn.down_proj.weight}.items():
                getattr(ours.ffn, name).weight.copy_(weight)
        quantized.lm_head.weight.copy_(packed.lm_head.weight)
        for name, weight in quantized.named_parameters():
            if "norm" in name or "embed" in name:
                weight.copy_(weight.bfloat16())
        for part in quantized.modules():
            if type(part).__name__ in ("Linear", "BackendLinear"):
                part.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))
        held_out = (run.parent / "a.txt").read_text(encoding="utf-8")
        ids = BYTES.encode(held_out[len(held_out) - len(held_out) // 10 :])
        kl, changed, right, losses = [], [], [], []
        for start in range(0, 3 * LENGTH, LENGTH):
            tokens = torch.tensor(ids[start : start + LENGTH + 1])
            before, after = (
                one.logits(one(tokens[None, :-1]).hidden[0]).double().log_softmax(-1) for one in (plain, quantized)
            )
            kl.append(float((before.exp() * (before - after)).sum(-1).mean()))
            changed.append(float((before.argmax(-1) != after.argmax(-1)).double().mean()))
            best = [float((one.argmax(-1) == tokens[1:]).double().mean()) for one in (before, after)]
            right.append(best[0] - best[1])
            losses.append([-float(one.gather(1, tokens[1:, None]).mean()) for one in (before, after)])
    found = [float(cell.replace(",", "")) for cell in cells.groups()]
    expected = [sum(values) / 3 for values in (kl, changed, right)]
    assert found[0] == 3 * LENGTH and found[1] == pytest.approx(expected[0], rel=0.02)
    assert found[2] == pytest.approx(100 * expected[1], abs=2) and found[3] == pytest.approx(100 * expected[2], abs=2)
    perplexities = [math.exp(sum(row[side] for row in losses) / 3) for side in (0, 1)]
    assert found[4:] == pytest.approx(perplexities, rel=0.01)


def test_a_limit_stops_it_before_the_file_is_written(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.gguf"
    for limit in ("max_kl=1e-9", "max_changed=0.0001", "max_lost=0.0001"):
        refused = said(run, "dtype=int4", "windows=3", limit, f"out={out}", code=1)
        field, _, value = limit[4:].partition("=")
        assert re.search(rf"a\.txt: {field} may be \S+, above max_{field}={float(value):g}\n", refused)
        assert not out.exists()
    assert str(out) in said(run, "dtype=int4", "windows=3", "max_kl=5", "max_changed=1", "max_lost=1", f"out={out}")
    assert "exists" in said(run, "dtype=int4", f"out={out}", code=2)


@pytest.mark.parametrize(("dtype", "kind"), [("int8", "Q8_0"), ("int4", "Q4_1")])
def test_the_file_has_the_weights_that_were_measured(dtype: str, kind: str, run: Path, tmp_path: Path) -> None:
    said(run, f"dtype={dtype}", "windows=2", f"out={tmp_path / 'a.gguf'}")
    types = {one.name: one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert types["blk.1.ffn_down.weight"] == kind and types["output.weight"] == "Q8_0"
    import_gguf(tmp_path / "a.gguf", tmp_path / "back", progress=lambda *_: None)
    packed, back = Engine(run, dtype=dtype, engine_cores=1).model, load_run(RunDir(tmp_path / "back"))
    assert packed.lm_head is not None and back.lm_head is not None
    torch.testing.assert_close(packed.lm_head.weight, back.lm_head.weight.detach(), rtol=0, atol=1e-2)
    for ours, theirs in zip(packed.layers, back.layers, strict=True):
        torch.testing.assert_close(
            ours.ffn.down_proj.weight, theirs.ffn.down_proj.weight.detach(), rtol=0, atol=1e-2 * (kind == "Q8_0") + 1e-6
        )
    again = Engine(tmp_path / "back", dtype=dtype, engine_cores=1).model
    for ours, theirs in zip(packed.layers, again.layers, strict=True):
        torch.testing.assert_close(
            ours.ffn.down_proj.weight, theirs.ffn.down_proj.weight, rtol=0, atol=1e-2 * (kind == "Q8_0") + 1e-6
        )


def test_bad_input_is_refused_and_its_twin_is_not(run: Path, tmp_path: Path) -> None:
    assert "dtype" in said(run, code=2) and "int16" in said(run, "dtype=int16", code=2)
    assert "exceeds the model's context of 128" in output_of("quantize", str(run), "dtype=int8", "length=129", code=2)
    (tmp_path / "short.txt").write_text("too short " * 9, encoding="utf-8")
    short = output_of("quantize", str(run), "dtype=int8", f"data={tmp_path / 'short.txt'}", "length=128", code=2)
    assert "short.txt" in short and "do not fill two windows of 128" in short
    kinds = output_of("quantize", str(run), "dtype=int8", "length=128", "windows=2", "data=kinds", "threads=1")
    assert all(kind in kinds for kind in KINDS)
