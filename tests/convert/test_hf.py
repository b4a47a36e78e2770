"""Hugging Face folders in and out: the bytes stay, the values convert exactly, and transformers reads the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_folders import (
    deepseek,
    from_fp8,
    in_fp8,
    listing,
    loud,
    published,
    qwen3,
    read_json,
    stored,
    values,
    write_folder,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rorqual.convert.hf import export_hf, import_hf
from rorqual.convert.metadata_files import _special_token_ids
from rorqual.core.errors import ConfigError, NumericsError, RorqualError
from rorqual.core.records import Message, RunDir
from rorqual.data.chat import chat_format, read_chat_name
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine
from rorqual.model import ModelConfig
from rorqual.model.load.find import known_model_types
from rorqual.model.load.run_directory import load_run, read_model_config
from rorqual.recipes import make_run
from rorqual.train.loop import fit

FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "weight_block_size": [128, 128],
    "activation_scheme": "dynamic",
    "scale_fmt": "ue8m0",
}
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


def fp8_folder(folder: Path, *, sparse: bool = False, **how: Any) -> Path:
    config = deepseek(sparse=sparse)
    return write_folder(folder, config, in_fp8(published(config)), quantization_config=FP8, **how)


FOLDERS = {
    "deepseek_v3 with a prediction module": lambda f: write_folder(f, deepseek(), published(deepseek())),
    "deepseek_v3 in FP8, in shards": lambda f: fp8_folder(f, shards=3),
    "deepseek_v32 in FP8, in shards": lambda f: fp8_folder(f, sparse=True, shards=2),
    "deepseek_v3, tied": lambda f: write_folder(
        f, deepseek(tie_word_embeddings=True), published(deepseek(tie_word_embeddings=True))
    ),
    "qwen3, tied": lambda f: write_folder(
        f, qwen3(tie_word_embeddings=True), published(qwen3(tie_word_embeddings=True))
    ),
    "qwen3, in bfloat16, in shards": lambda f: write_folder(
        f, qwen3(), {name: t.bfloat16() for name, t in published(qwen3()).items()}, shards=2
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_three_trips_change_nothing(case: str, tmp_path: Path) -> None:
    before = FOLDERS[case](tmp_path / "hub")
    exports = []
    for trip in range(3):
        import_hf(before if not exports else exports[-1], tmp_path / f"run{trip}")
        exports.append(tmp_path / f"out{trip}")
        export_hf(RunDir(tmp_path / f"run{trip}"), exports[-1], shard_bytes=100_000)
    assert stored(exports[0]) == stored(before)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        theirs, ours = (before / name), (exports[0] / name)
        assert (
            theirs.read_bytes() == ours.read_bytes()
            if name == "tokenizer.json"
            else read_json(theirs) == read_json(ours)
        )
    assert listing(exports[0]) == listing(exports[1]) == listing(exports[2])
    weights = [stored(tmp_path / f"run{trip}" / "step-000000") for trip in range(3)]
    assert weights[0] == weights[1] == weights[2]


LITTLE: dict[str, Any] = {
    "vocab_size": 263, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
MLA: dict[str, Any] = {
    "num_key_value_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen3, tied": {"head_dim": 8, "tie_word_embeddings": True},
    "qwen3_moe": {
        "head_dim": 8,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
    "deepseek_v2": {**MLA, "topk_method": "group_limited_greedy"},
    "deepseek_v3": {**MLA, "num_nextn_predict_layers": 0},
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_what_transformers_saves_comes_back_with_the_same_bytes_and_the_same_logits(case: str, tmp_path: Path) -> None:
    kind = case.partition(",")[0]
    if kind not in known_model_types():
        pytest.skip(f"{kind} is not read yet")
    theirs = _theirs(kind, PUBLISHED[case])
    theirs.save_pretrained(tmp_path / "hub", max_shard_size="40KB")
    Tokenizer.byte_level().save(tmp_path / "hub" / "tokenizer.json")
    import_hf(tmp_path / "hub", tmp_path / "run")
    export_hf(RunDir(tmp_path / "run"), tmp_path / "out")
    assert stored(tmp_path / "out") == stored(tmp_path / "hub")
    tokens = torch.randint(263, (2, 24), generator=torch.Generator().manual_seed(1))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ours = load_run(RunDir(tmp_path / "run"))
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert 0.5 < float(expected.std()) < 2
        assert torch.equal(again(tokens).logits, expected)
        assert relative(ours.logits(ours(tokens).hidden), expected) < 1e-4


@torch.no_grad()
def _theirs(kind: str, keys: dict[str, Any]) -> Any:
    """A model of transformers' own, loud."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **{**LITTLE, **keys}), dtype=torch.float32
    ).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            tensor.normal_(std=0.1)
        elif tensor.dim() > 1:
            tensor.normal_(std=(4.0 if "q_b_proj" in name or "q_proj" in name else 1.0) / tensor.shape[-1] ** 0.5)
        else:
            tensor.normal_(1.0 if "norm" in name else 0.0, 0.2)
    last = model.model.norm.weight
    last.mul_(1 / model(torch.arange(24)[None] * 7 % 263).logits.std())
    return model


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("config", [qwen3(), qwen3(tie_word_embeddings=True), deepseek(mtp=0), deepseek()])
def test_an_export_loads_in_transformers_with_equal_logits_and_tokens(config: ModelConfig, tmp_path: Path) -> None:
    import_hf(write_folder(tmp_path / "hub", config, published(config)), tmp_path / "run")
    export_hf(RunDir(tmp_path / "run"), tmp_path / "out", shard_bytes=50_000)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ours = loud(config)
    tokens = torch.randint(config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = ours.logits(ours(tokens).hidden)
        assert 0.5 < float(logits.std()) < 2
        assert relative(theirs(tokens).logits, logits) < 1e-4
    text = "12 apples <think> é"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.decode(Engine(tmp_path / "run").tokenizer.encode(text)) == text


@pytest.fixture(scope="module", params=["tiny", "tiny-student"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of a few steps: deepseek_v3 with a prediction module, as the quickstart's teacher; qwen3, as its student."""
    run = RunDir(tmp_path_factory.mktemp("trained") / "run")
    fit(make_run("sft", {"task": "families", "size": request.param, "steps": "3", "rows": "4"}), run, quiet=True)
    return run


@pytest.mark.parametrize("name", ["qwen", "smollm2"])
def test_every_end_token_of_the_chat_format_is_exported(name: str) -> None:
    tokenizer = Tokenizer.load(Path(__file__).parents[1] / "data" / "chat" / "golden" / f"tokenizer-{name}.json")
    chat = chat_format(tokenizer, "chatml")
    found = _special_token_ids(chat)["eos_token_id"]
    assert (found if isinstance(found, list) else [found]) == list(chat.stop_ids)


def test_a_trained_run_exports_with_tokenizer_template_and_ids(trained: RunDir, tmp_path: Path) -> None:
    export_hf(trained, tmp_path / "out")
    import_hf(tmp_path / "out", tmp_path / "again")
    first, again = (Engine(path, backend="torch-invariant") for path in (trained.path, tmp_path / "again"))
    state = first.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.model.state_dict().items())
    assert (first.chat.name, first.tokenizer) == (again.chat.name, again.tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    said = tokenizer.apply_chat_template([{"role": "user", "content": "add 1 2"}], add_generation_prompt=True)
    prompt = first.chat.prompt([Message("user", "add 1 2")])
    assert list(said["input_ids"]) == prompt
    assert read_json(tmp_path / "out" / "generation_config.json")["eos_token_id"] == first.chat.stop_ids[0]
    assert read_json(tmp_path / "out" / "config.json")["torch_dtype"] == "float32"
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        tokens = torch.tensor([prompt])
        assert relative(first.model.logits(first.model(tokens).hidden), theirs(tokens).logits) < 1e-4


def test_what_a_run_says_of_its_import(tmp_path: Path) -> None:
    notes = import_hf(fp8_folder(tmp_path / "hub"), tmp_path / "run")
    data = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text(encoding="utf-8"))
    assert (data["recipe"], data["imported"]["format"], data["imported"]["family"]) == ("import", "hf", "deepseek_v3")
    assert data["imported"]["quantization"] == FP8
    assert data["generation"] == {"eos_token_id": [1], "temperature": 0.6, "top_p": 0.95}
    assert read_model_config(RunDir(tmp_path / "run")) == deepseek()
    assert notes == ()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("way", ["import", "export"])
def test_fp8_is_dequantised_to_the_bit_and_the_bias_is_never_narrowed(dtype: str, way: str, tmp_path: Path) -> None:
    folder = fp8_folder(tmp_path / "hub", shards=2)
    ways: list[dict[str, Any]] = [{"dtype": dtype}, {}]
    import_hf(folder, tmp_path / "run", **ways[way == "export"])
    export_hf(RunDir(tmp_path / "run"), tmp_path / "out", **ways[way == "import"])
    got, kind = values(tmp_path / "out"), getattr(torch, dtype)
    expected = {name: t if name.endswith(BIAS[-23:]) else t.to(kind) for name, t in from_fp8(values(folder)).items()}
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name
    config = read_json(tmp_path / "out" / "config.json")
    assert "quantization_config" not in config
    assert config["torch_dtype"] == dtype


@pytest.mark.parametrize("sparse", [False, True])
def test_an_export_in_fp8_is_what_deepseek_publishes_and_stays_what_it_is(sparse: bool, tmp_path: Path) -> None:
    config = deepseek(sparse=sparse)
    import_hf(write_folder(tmp_path / "hub", config, published(config)), tmp_path / "run")
    export_hf(RunDir(tmp_path / "run"), tmp_path / "out", dtype="fp8")
    hub, got = published(config), values(tmp_path / "out")
    names = in_fp8(hub)
    assert {name: tensor.dtype for name, tensor in got.items()} == {
        name: tensor.dtype for name, tensor in names.items()
    }
    for name, tensor in from_fp8(got).items():
        step = 2**-4 if f"{name}_scale_inv" in got else 2**-8  # half a unit in the last place, relative
        assert bool(((tensor - hub[name]).abs() <= step * hub[name].abs() + hub[name].abs().max() * 2e-5).all()), name
    assert read_json(tmp_path / "out" / "config.json")["quantization_config"]["weight_block_size"] == [128, 128]
    import_hf(tmp_path / "out", tmp_path / "again", dtype="float32")
    export_hf(RunDir(tmp_path / "again"), tmp_path / "twice", dtype="fp8")
    assert stored(tmp_path / "twice") == stored(tmp_path / "out")


def test_transformers_dequantises_our_fp8_to_what_we_do(tmp_path: Path) -> None:
    config = deepseek(whole_blocks=True)  # transformers reads no others: it divides the rows by the rows of the scales
    import_hf(write_folder(tmp_path / "hub", config, published(config)), tmp_path / "run")
    export_hf(RunDir(tmp_path / "run"), tmp_path / "out", dtype="fp8")
    import_hf(tmp_path / "out", tmp_path / "again")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ours = load_run(RunDir(tmp_path / "again"))
    tokens = torch.randint(263, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert relative(theirs(tokens).logits, ours.logits(ours(tokens).hidden)) < 1e-4


def test_a_value_that_the_type_cannot_hold_is_refused_and_a_wider_type_taken(tmp_path: Path) -> None:
    hub = published(qwen3())
    hub["model.layers.1.mlp.up_proj.weight"][3, 2] = 70_000.0
    folder = write_folder(tmp_path / "hub", qwen3(), hub)
    before = listing(tmp_path)
    with pytest.raises(NumericsError, match=r"layers\.1\.mlp\.up_proj\.weight has values that F16 cannot hold"):
        import_hf(folder, tmp_path / "run", dtype="float16")
    assert listing(tmp_path) == before
    import_hf(folder, tmp_path / "run", dtype="bfloat16")


def test_a_type_that_there_is_not_is_named(trained: RunDir, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hub", qwen3(), published(qwen3()))
    with pytest.raises(ConfigError, match="bfloat16"):
        import_hf(folder, tmp_path / "run", dtype="bfloat")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="fp8"):
        import_hf(folder, tmp_path / "run", dtype="fp8")
    with pytest.raises(ConfigError, match="int4"):
        export_hf(trained, tmp_path / "out", dtype="int4")  # type: ignore[arg-type]


def test_progress_counts_every_byte_once(tmp_path: Path) -> None:
    folder = fp8_folder(tmp_path / "hub")
    seen: list[tuple[int, int, str]] = []
    import_hf(folder, tmp_path / "run", progress=lambda *now: seen.append(now))
    done, totals = [now[0] for now in seen], {now[1] for now in seen}
    assert done == sorted(done)
    assert totals == {done[-1]}


@pytest.mark.parametrize("there", ["a folder with a file", "a file", "a link to nowhere"])
def test_a_target_that_exists_is_refused_and_left_alone(there: str, trained: RunDir, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hub", qwen3(), published(qwen3()))
    target = tmp_path / "there"
    if there == "a folder with a file":
        target.mkdir()
        (target / "mine.txt").write_text("mine", encoding="utf-8")
    elif there == "a file":
        target.write_text("mine", encoding="utf-8")
    else:
        target.symlink_to(tmp_path / "nowhere")
    before = listing(tmp_path)
    for convert in (lambda: import_hf(folder, target), lambda: export_hf(trained, target)):
        with pytest.raises(RorqualError, match="already exists"):
            convert()
    assert listing(tmp_path) == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    import_hf(write_folder(tmp_path / "hub", qwen3(), published(qwen3())), tmp_path / "run")
    assert RunDir(tmp_path / "run").newest_complete_step() == (0, [])


def test_a_v32_checkpoint_without_a_template_speaks_dsml(tmp_path: Path) -> None:
    """V3.2 published code instead of a template; V3.2-Exp, of the same type, came with V3.1's template."""
    folder = write_folder(tmp_path / "hub", deepseek(sparse=True), published(deepseek(sparse=True)))
    import_hf(folder, tmp_path / "run")
    assert read_chat_name(RunDir(tmp_path / "run")) == "deepseek-v3.2"
    again = tmp_path / "out"
    export_hf(RunDir(tmp_path / "run"), again)
    import_hf(again, tmp_path / "again")
    assert read_chat_name(RunDir(tmp_path / "again")) == "deepseek-v3.2"
    (folder / "chat_template.jinja").write_text(
        chat_format(Tokenizer.byte_level(), "deepseek").template or "", encoding="utf-8"
    )
    import_hf(folder, tmp_path / "exp")
    assert read_chat_name(RunDir(tmp_path / "exp")) == "deepseek"
