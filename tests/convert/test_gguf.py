"""GGUF out and in: round trips of every architecture, the layout that llama.cpp reads, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import yaml
from gguf_models import HIDDEN, configs, filled, silent, weights_of, write_run
from torch import Tensor

from rorqual.convert.gguf import export_gguf, import_gguf
from rorqual.core.errors import CheckpointError, ConfigError, DataError, NumericsError, RorqualError
from rorqual.core.records import RunDir
from rorqual.data.tokenizer import Tokenizer
from rorqual.model import ModelConfig
from rorqual.model.load import deepseek_v3
from rorqual.model.load.names import NameEntry
from rorqual.model.load.run_directory import load_run, read_model_config
from rorqual.ops.quant import dequantize_blocks, quantize_blocks

CONFIGS = configs()


def exported(
    path: Path, config: ModelConfig, dtype: str = "f32", *, kept: torch.dtype = torch.float32
) -> tuple[RunDir, Path]:
    run = write_run(path / "run", filled(config), dtype=kept)
    export_gguf(run, path / "model.gguf", dtype=dtype, progress=silent)
    return run, path / "model.gguf"


def imported(file: Path, **how: str) -> RunDir:
    out = file.with_suffix("")
    import_gguf(file, out, progress=silent, **how)
    return RunDir(out)


@pytest.mark.parametrize(("dtype", "kept"), [("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)])
@pytest.mark.parametrize("name", CONFIGS)
def test_out_and_in_again_is_the_same_model_bit_for_bit(
    tmp_path: Path, name: str, dtype: str, kept: torch.dtype
) -> None:
    run, file = exported(tmp_path, CONFIGS[name], dtype, kept=kept)
    back = imported(file)
    assert read_model_config(back) == CONFIGS[name].model_copy(update={"num_nextn_predict_layers": 0})
    before, after = weights_of(run), weights_of(back)
    assert before.keys() == after.keys()
    for key, tensor in after.items():
        assert torch.equal(tensor.float(), before[key].float()), key
        assert tensor.dtype == kept or tensor.dim() == 1 or key.endswith("ffn.router.gate"), key
    assert Tokenizer.load(back.tokenizer_file) == Tokenizer.load(run.tokenizer_file)
    load_run(back)


@pytest.mark.parametrize("name", ["llama", "deepseek2"])
def test_q8_0_comes_back_within_half_a_step(tmp_path: Path, name: str) -> None:
    run, file = exported(tmp_path, CONFIGS[name], "q8_0")
    before, after = weights_of(run), weights_of(imported(file))
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert types["token_embd.weight"] == "Q8_0" and types["output_norm.weight"] == "F32"
    for key, tensor in before.items():
        # Blocks of 32 are of rows of the file's tensors, which for some are columns of ours: the widest step bounds all.
        assert float((tensor - after[key]).abs().max()) <= float(tensor.abs().max()) / 127 * 0.51, key


def test_rows_that_are_not_whole_blocks_stay_f32(tmp_path: Path) -> None:
    _, file = exported(tmp_path, CONFIGS["deepseek2"], "q4_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert types["blk.1.attn_q_b.weight"] == "F32"  # rows of 24
    assert types["blk.1.attn_k_b.weight"] == types["blk.1.ffn_up_exps.weight"] == "Q4_0"
    assert types["token_embd.weight"] == types["output.weight"] == "Q8_0"
    assert types["blk.1.ffn_gate_inp.weight"] == types["blk.1.exp_probs_b.bias"] == "F32"


def test_quantised_tensors_come_in_the_type_asked_for_and_others_as_they_are(tmp_path: Path) -> None:
    _, file = exported(tmp_path, CONFIGS["qwen3"], "q8_0")
    out = weights_of(imported(file, dtype="bfloat16"))
    assert out["layers.0.attention.q_proj.weight"].dtype == torch.bfloat16
    assert out["norm.weight"].dtype == torch.float32
    with pytest.raises(ConfigError, match="float16"):
        import_gguf(file, tmp_path / "other", progress=silent, dtype="float16")


def test_the_gguf_package_reads_what_is_written(tmp_path: Path) -> None:
    run, file = exported(tmp_path, CONFIGS["deepseek2"])
    reader = gguf.GGUFReader(file)
    keys = ("general.architecture", "deepseek2.attention.key_length_mla", "deepseek2.expert_gating_func")
    assert [reader.fields[key].contents() for key in keys] == ["deepseek2", 40, 2]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    ours = weights_of(run)
    assert not any(name.startswith("blk.3.") for name in tensors)  # the prediction module is left out
    # Independent of our tables: heads of (nope + v) rows; W^UK transposed, W^UV as it is.
    kv = ours["layers.0.attention.kv_b_proj.weight"].reshape(2, 32 + 12, 32)
    assert np.array_equal(tensors["blk.0.attn_k_b.weight"].data, kv[:, :32].transpose(1, 2).numpy())
    assert np.array_equal(tensors["blk.0.attn_v_b.weight"].data, kv[:, 32:].numpy())
    experts = ours["layers.1.ffn.experts.gate_up_proj"]
    assert np.array_equal(tensors["blk.1.ffn_gate_exps.weight"].data, experts[:, :32].numpy())
    assert np.array_equal(tensors["blk.1.ffn_up_exps.weight"].data, experts[:, 32:].numpy())


def test_llamas_queries_and_keys_have_their_halves_interleaved(tmp_path: Path) -> None:
    run, file = exported(tmp_path, CONFIGS["llama"])
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    for part, heads in (("q", 4), ("k", 2)):
        ours = weights_of(run)[f"layers.1.attention.{part}_proj.weight"].numpy()
        theirs = tensors[f"blk.1.attn_{part}.weight"]
        for head in range(heads):
            for index in range(8):
                for half in range(2):
                    assert np.array_equal(theirs[head * 16 + 2 * index + half], ours[head * 16 + half * 8 + index])
    assert np.array_equal(tensors["blk.1.attn_v.weight"], weights_of(run)["layers.1.attention.v_proj.weight"].numpy())


def test_an_older_deepseek_file_with_kv_b_in_one_piece_is_read(tmp_path: Path) -> None:
    run, file = exported(tmp_path, CONFIGS["deepseek2-v2"])
    reader, ours = gguf.GGUFReader(file), weights_of(run)
    old = gguf.GGUFWriter(tmp_path / "old.gguf", "deepseek2")
    for field in reader.fields.values():
        if field.name.startswith(("GGUF.", "general.architecture")) or field.name.endswith("_mla"):
            continue
        value = {"deepseek2.attention.key_length": 40, "deepseek2.attention.value_length": 12}.get(field.name)
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        old.add_key_value(field.name, value or field.contents(), field.types[0], sub)
    for tensor in reader.tensors:
        if "attn_k_b" in tensor.name:
            layer = tensor.name.split(".")[1]
            old.add_tensor(f"blk.{layer}.attn_kv_b.weight", ours[f"layers.{layer}.attention.kv_b_proj.weight"].numpy())
        elif "attn_v_b" not in tensor.name:
            old.add_tensor(tensor.name, np.array(tensor.data))
    for step in (old.write_header_to_file, old.write_kv_data_to_file, old.write_tensors_to_file, old.close):
        step()
    after = weights_of(imported(tmp_path / "old.gguf"))
    assert all(torch.equal(after[name], tensor) for name, tensor in ours.items())


def test_the_run_says_where_it_comes_from(tmp_path: Path) -> None:
    _, file = exported(tmp_path, CONFIGS["qwen2"], "q4_0")
    data = yaml.safe_load((imported(file).path / "run.yaml").read_text(encoding="utf-8"))
    assert data["recipe"] == "import" and data["chat"] == "deepseek"
    assert data["imported"] == {
        "source": "model.gguf",
        "format": "gguf",
        "family": "qwen2",
        "dtype": "float32",
        "types": ["F32", "Q4_0", "Q8_0"],
    }
    assert data["generation"] == {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


@pytest.mark.parametrize("direction", ["out", "in"])
def test_progress_counts_bytes_to_their_total(tmp_path: Path, direction: str) -> None:
    calls: list[tuple[int, int, str]] = []

    def seen(done: int, total: int, name: str) -> None:
        calls.append((done, total, name))

    run = write_run(tmp_path / "run", filled(CONFIGS["qwen3"]))
    export_gguf(run, tmp_path / "m.gguf", dtype="f32", progress=seen if direction == "out" else silent)
    import_gguf(tmp_path / "m.gguf", tmp_path / "m", progress=seen if direction == "in" else silent)
    done = [call[0] for call in calls]
    assert done == sorted(done) and done[-1] == calls[0][1] > 0 and len({call[1] for call in calls}) == 1


def joined(entry: NameEntry, parts: list[Tensor]) -> Tensor:
    out = torch.empty(entry.internal_shape([tuple(part.shape) for part in parts]), dtype=parts[0].dtype)
    for index, part in enumerate(parts):
        entry.published_view(out, index).copy_(part)
    return out


@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
def test_fp8_weights_are_dequantised_on_their_way(tmp_path: Path, dtype: str) -> None:
    # Sizes beyond a block, and heads of kv_b that begin inside one.
    config = configs()["deepseek2"].model_copy(update={"hidden_size": 160, "num_nextn_predict_layers": 0})
    model = filled(config)
    state = model.state_dict()
    kept, wide = {}, {}
    for entry in deepseek_v3.name_map(config).entries:
        ours = state[entry.internal]
        if ours.dim() == 1 or entry.internal.endswith(("ffn.router.gate", "embed_tokens.weight", "lm_head.weight")):
            kept[entry.internal] = wide[entry.internal] = ours
            continue
        pieces = [quantize_blocks(entry.published_view(ours, index)) for index in range(len(entry.published))]
        kept[entry.internal] = joined(entry, [values for values, _ in pieces])
        kept[entry.scales_entry().internal] = joined(entry.scales_entry(), [scales for _, scales in pieces])
        wide[entry.internal] = joined(entry, [dequantize_blocks(*piece) for piece in pieces])
    for name, tensors in (("fp8", kept), ("wide", wide)):
        run = write_run(tmp_path / name, model, stored=tensors)
        export_gguf(run, tmp_path / f"{name}.gguf", dtype=dtype, progress=silent)
    one, two = (gguf.GGUFReader(tmp_path / f"{name}.gguf").tensors for name in ("fp8", "wide"))
    assert len(one) == len(two) > 30
    for left, right in zip(one, two):
        assert left.name == right.name and np.array_equal(left.data, right.data), left.name


def test_what_is_not_as_asked_for_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", filled(CONFIGS["deepseek2"]))
    modules, odd = export_gguf(run, tmp_path / "m.gguf", dtype="q8_0", progress=silent)
    assert "1 prediction module(s) (MTP) omitted" in modules
    assert "tensors in F32: their rows are not whole blocks of 32: blk.0.attn_q_b.weight" in odd
    run = write_run(tmp_path / "other", filled(CONFIGS["qwen2"]))
    assert export_gguf(run, tmp_path / "other.gguf", dtype="q8_0", progress=silent) == ()


# ---- what is refused, before anything is written


def test_weights_that_are_not_numbers_are_refused_by_name_and_leave_nothing(tmp_path: Path) -> None:
    model = filled(CONFIGS["qwen3"])
    with torch.no_grad():
        model.layers[1].ffn.up_proj.weight[3, 5] = float("nan")
    run = write_run(tmp_path / "run", model)
    with pytest.raises(NumericsError, match=r"layers\.1\.ffn\.up_proj\.weight.*NaN"):
        export_gguf(run, tmp_path / "model.gguf", dtype="f32", progress=silent)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_qwen2_whose_heads_are_not_as_wide_as_its_hidden_state_is_refused(tmp_path: Path) -> None:
    """llama.cpp has no key for it; a Qwen3 of the same widths is written."""
    wide = CONFIGS["qwen2"].stages[0].attention.model_copy(update={"head_dim": 32})
    stages = tuple(stage.model_copy(update={"attention": wide}) for stage in CONFIGS["qwen2"].stages)
    run = write_run(tmp_path / "run", filled(CONFIGS["qwen2"].model_copy(update={"stages": stages})))
    with pytest.raises(CheckpointError, match=r"4 heads of width 32 differ from hidden_size 64"):
        export_gguf(run, tmp_path / "model.gguf", dtype="f32", progress=silent)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_value_beyond_half_precision_is_refused_where_it_would_become_infinite(tmp_path: Path) -> None:
    model = filled(CONFIGS["qwen3"])
    with torch.no_grad():
        model.layers[0].ffn.up_proj.weight[0, 0] = 70000.0
    run = write_run(tmp_path / "run", model)
    with pytest.raises(CheckpointError, match="more than F16 can represent"):
        export_gguf(run, tmp_path / "model.gguf", dtype="f16", progress=silent)
    for dtype in ("bf16", "q8_0"):
        export_gguf(run, tmp_path / f"{dtype}.gguf", dtype=dtype, progress=silent)


def test_an_export_never_touches_what_is_there(tmp_path: Path) -> None:
    run, file = exported(tmp_path, CONFIGS["qwen3"])
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match="already exists"):
        export_gguf(run, file, dtype="q8_0", progress=silent)
    assert file.read_bytes() == before


def test_an_import_never_touches_what_is_there(tmp_path: Path) -> None:
    _, file = exported(tmp_path, CONFIGS["qwen3"])
    with pytest.raises(CheckpointError, match="already exists"):
        import_gguf(file, tmp_path, progress=silent)
    (tmp_path / "empty").mkdir()
    import_gguf(file, tmp_path / "empty", progress=silent)
    assert RunDir(tmp_path / "empty").newest_complete_step() == (0, [])


@pytest.mark.parametrize(("dtype", "value"), [("f32", np.float32(np.inf)), ("q8_0", np.float16(np.nan))])
def test_a_failure_half_way_names_the_tensor_and_leaves_nothing(
    tmp_path: Path, dtype: str, value: np.floating[Any]
) -> None:
    """The value is a weight of the F32 file, and the scale of a block of the Q8_0 file."""
    _, file = exported(tmp_path, CONFIGS["qwen3"], dtype)
    start = next(t.data_offset for t in gguf.GGUFReader(file).tensors if t.name == "blk.1.ffn_down.weight")
    data = file.read_bytes()
    file.write_bytes(data[:start] + value.tobytes() + data[start + value.nbytes :])
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_down\.weight.*NaN or infinity"):
        import_gguf(file, tmp_path / "bad", progress=silent)
    assert sorted(os.listdir(tmp_path)) == before
    with pytest.raises(RorqualError, match="cannot write"):
        import_gguf(file, file / "inside", progress=silent)


def test_a_tokenizer_without_a_name_in_gguf_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", filled(CONFIGS["qwen3"]))
    data = json.loads(run.tokenizer_file.read_text(encoding="utf-8"))
    data["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = False
    run.tokenizer_file.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(DataError, match=r"no name for this tokenizer's pre-tokenizer Digits \+ ByteLevel"):
        export_gguf(run, tmp_path / "model.gguf", dtype="f32", progress=silent)
    assert HIDDEN and not (tmp_path / "model.gguf").exists()
