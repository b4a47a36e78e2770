"""What of a model an adapter trains, what it makes of it, and which files and bases it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from written_run import write_run

from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.core.records import RunDir
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.adapter import (
    ESFT,
    Adapter,
    FullTuning,
    LoRA,
    Tune,
    find_base_and_adapters,
    fingerprint,
    read_adapter_info,
    trained_parameters,
)
from rorqual.model.adapter.esft import select_experts
from rorqual.model.adapter.files import (
    ADAPTER_FILE,
    ADAPTER_INFO,
    WEIGHTS_FILE,
    record_base_checkpoint,
)
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.load.run_directory import load_run
from rorqual.ops.backends import TORCH_INVARIANT

LATENT = MLAConfig(num_attention_heads=2, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4)


class Wrapped(nn.Module):
    """A linear map with an adapter, as peft puts it in the map's place."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.weight = base, base.weight

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.base_layer(x)


class Doubled(nn.Linear):
    """With an adapter in a subclass, as loralib has it."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_wrapper_whose_weight_is_read_without_it_is_refused() -> None:
    stage = Stage(layers=1, attention=LATENT, ffn=DenseConfig(intermediate_size=8))
    model = build(ModelConfig(vocab_size=20, hidden_size=16, stages=(stage,)), seed=0, ops=TORCH_INVARIANT)
    tokens = torch.arange(6).unsqueeze(0)
    attention = model.layers[0].attention
    before = model(tokens).hidden
    attention.o_proj = Wrapped(attention.o_proj)
    assert not torch.equal(model(tokens).hidden, before)
    plain = attention.kv_b_proj
    attention.kv_b_proj = torch.compile(plain, backend="eager")
    model(tokens)
    for wrapper in (Wrapped(plain), Doubled(8, 16, bias=False)):
        attention.kv_b_proj = wrapper
        with pytest.raises(ConfigError, match=f"kv_b_proj is a {type(wrapper).__name__}"):
            model(tokens)


ATTENTION = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_bias=True)
MOE = MoEConfig(n_routed_experts=5, num_experts_per_tok=2, moe_intermediate_size=12, n_shared_experts=1)
CONFIG = ModelConfig(
    vocab_size=40,
    hidden_size=32,
    stages=(
        Stage(layers=1, attention=ATTENTION, ffn=DenseConfig(intermediate_size=20)),
        Stage(layers=2, attention=ATTENTION, ffn=MOE),
    ),
    num_nextn_predict_layers=1,
    initializer_range=0.2,
)
TOKENS = torch.arange(24).view(2, 12)
EXPERTS = ((1, 4), (0,))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def logits(model: Decoder) -> Tensor:
    with torch.no_grad():
        return model.logits(model(TOKENS).hidden)


@torch.no_grad()
def adapted(tune: Tune, experts: tuple[tuple[int, ...], ...] = ()) -> Decoder:
    """A model with what is trained of it moved."""
    model = build(CONFIG, seed=0)
    tune.attach(model, seed=0, experts=experts)
    for seed, parameter in enumerate(trained_parameters(model).values()):
        parameter.add_(0.2 * normal(*parameter.shape, seed=seed))
    return model


TUNES: dict[str, tuple[Tune, tuple[tuple[int, ...], ...]]] = {
    "full": (FullTuning(), ()),
    "lora": (LoRA(r=3, alpha=5.0), ()),
    "rank-stabilised lora": (LoRA(r=4, alpha=5.0, use_rslora=True, targets=("o_proj", "ffn.up_proj")), ()),
    "esft": (ESFT(), EXPERTS),
}


@pytest.mark.parametrize("name", TUNES)
def test_what_is_trained_has_the_names_and_shapes_that_were_told(name: str) -> None:
    """And it alone has gradients, each of them."""
    tune, experts = TUNES[name]
    shapes = tune.trained_shapes(build(CONFIG, seed=0), experts)
    model = adapted(tune, experts)
    found = trained_parameters(model)
    assert {n: tuple(p.shape) for n, p in found.items()} == shapes
    out = model(TOKENS)
    further = model.predict_with_mtp(out.hidden, TOKENS)[0].hidden
    (model.logits(out.hidden).square().sum() + model.logits(further).square().sum()).backward()
    assert all(p.grad is not None for p in found.values())
    assert all(p.grad is None for n, p in model.named_parameters() if n not in found)
    assert tune.trains_all is (name == "full")


# ---- LoRA


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (("o_proj",), ["layers.0.attention.o_proj", "layers.1.attention.o_proj", "layers.2.attention.o_proj"]),
        (("ffn.up_proj",), ["layers.0.ffn.up_proj"]),
        (("shared_experts.up_proj",), ["layers.1.ffn.shared_experts.up_proj", "layers.2.ffn.shared_experts.up_proj"]),
        (("layers.2.attention.k_proj",), ["layers.2.attention.k_proj"]),
        (("layers.0.ffn.up_proj", "v_proj"), ["layers.0.ffn.up_proj", *(f"layers.{i}.attention.v_proj" for i in range(3))]),
        ("layers.0.attention.q_proj", ["layers.0.attention.q_proj"]),
    ],
    ids=["word", "words", "inner", "whole", "two", "text"],
)  # fmt: skip
def test_a_target_is_a_name_or_its_last_words(targets: tuple[str, ...] | str, found: list[str]) -> None:
    tune = LoRA.model_validate({"r": 2, "targets": targets})
    assert sorted(tune.find_targets(build(CONFIG, seed=0))) == sorted(found)


@pytest.mark.parametrize(
    "target", ["proj", "_proj", "attention", "lm_head", "eh_proj", "mtp.0.block.attention.o_proj", "gate"]
)
def test_part_of_a_word_and_maps_elsewhere_are_no_targets(target: str) -> None:
    LoRA(r=2, targets=("o_proj",)).find_targets(build(CONFIG, seed=0))
    with pytest.raises(ConfigError, match=f"'{target}'") as caught:
        LoRA(r=2, targets=("o_proj", target)).find_targets(build(CONFIG, seed=0))
    assert caught.value.where == "tune.targets"


# ---- ESFT


def test_a_sum_of_shares_that_is_rounded_takes_no_expert_more() -> None:
    """Eight times 0.1 is less than 0.8 in floating point."""
    assert select_experts([torch.ones(10).double()], 0.8) == (tuple(range(8)),)


# ---- files


def whole_run(folder: Path, seed: int = 0) -> Path:
    return write_run(folder, CONFIG, build(CONFIG, seed=seed).state_dict(), step=3).step_dir(3)


TUNE = LoRA(r=2, targets=("o_proj",))


def adapter_run(folder: Path, base: Path, change: Callable[[dict[str, Tensor]], None] = lambda t: None) -> Path:
    tensors = {name: normal(*shape, seed=9) for name, shape in TUNE.trained_shapes(build(CONFIG, seed=0)).items()}
    change(tensors)
    adapter = Adapter(base=record_base_checkpoint(base, named="elsewhere/moved", seen_from=folder), tune=TUNE)
    return write_run(folder, CONFIG, {}, adapter.file_contents(tensors), step=12).step_dir(12)


def test_adapters_are_unfolded_from_the_innermost_on(tmp_path: Path) -> None:
    """Each is found beside the one above it; the model is the base and all of them."""
    base = whole_run(tmp_path / "base")
    first = adapter_run(tmp_path / "first", base)
    second = adapter_run(tmp_path / "deep" / "second", first)
    found, pieces = find_base_and_adapters(second)
    assert found.resolve() == base.resolve() and [p.folder.resolve() for p in pieces] == [
        first.resolve(),
        second.resolve(),
    ]
    assert find_base_and_adapters(base) == (base, []) and read_adapter_info(base) is None
    info = read_adapter_info(second)
    assert info is not None and (info.base.step, info.base.beside) == (12, "../../first")
    model = build(CONFIG, seed=0)
    for piece in pieces:
        piece.merge_into(model)
    assert torch.equal(logits(load_run(RunDir(tmp_path / "deep" / "second"))), logits(model))


def test_a_base_and_its_adapter_are_added_in_fp32_and_rounded_once(tmp_path: Path) -> None:
    adapter_run(tmp_path / "adapted", whole_run(tmp_path / "base"))
    run = RunDir(tmp_path / "adapted")
    exact, rounded = (load_run(run, dtype=dtype).state_dict() for dtype in (torch.float32, torch.bfloat16))
    assert all(torch.equal(rounded[name], weight.bfloat16()) for name, weight in exact.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.0.attention.o_proj.lora_A"), "missing layers.0.attention.o_proj.lora_A"),
        (lambda t: t.update({"more.lora_A": torch.zeros(1)}), "unexpected more.lora_A"),
        (lambda t: t.update({"layers.2.attention.o_proj.lora_B": torch.zeros(32, 3)}), r"lora_B has shape \(32, 3\), not \(32, 2\)"),
        (lambda t: t["layers.1.attention.o_proj.lora_A"][0].fill_(math.nan), "lora_A contains NaN or infinity"),
        (lambda t: t["layers.1.attention.o_proj.lora_B"][-1].fill_(-math.inf), "lora_B contains NaN or infinity"),
    ],
    ids=["missing", "left over", "shape", "nan", "infinity"],
)  # fmt: skip
def test_tensors_that_are_not_the_adapters_are_refused_by_name(
    change: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    base = whole_run(tmp_path / "base")
    load_run(RunDir(adapter_run(tmp_path / "right", base).parent))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_run(RunDir(adapter_run(tmp_path / "wrong", base, change).parent))
    assert caught.value.where.endswith(ADAPTER_FILE)


def test_a_fingerprint_is_of_the_weights_or_of_both_files_of_an_adapter(tmp_path: Path) -> None:
    base = whole_run(tmp_path / "base")
    lora = adapter_run(tmp_path / "lora", base)
    for folder, name in ((base, WEIGHTS_FILE), (lora, ADAPTER_FILE), (lora, ADAPTER_INFO)):
        file = folder / name
        before, data = fingerprint(folder), file.read_bytes()
        for changed in (b"\0" + data[1:], data[:-1] + b"\0", data + b" "):
            file.write_bytes(changed)
            assert fingerprint(folder) != before
        file.write_bytes(data)
        assert fingerprint(folder) == before
    (base / "optim.safetensors").write_bytes(b"more")
    assert fingerprint(base) == fingerprint(base)
    (lora / ADAPTER_FILE).unlink()
    with pytest.raises(CheckpointError, match="cannot read"):
        fingerprint(lora)
