"""LoRA in PEFT's format, against peft itself on transformers' models (PyPI: peft, transformers)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_folders import loud
from safetensors.torch import load_file, save_file
from torch import Tensor

from rorqual.convert.merge import merge_run
from rorqual.convert.peft import CONFIG, PICKLE, WEIGHTS, read_peft, shortest_suffixes, write_peft
from rorqual.core.config import to_yaml
from rorqual.core.errors import CheckpointError, ConfigError, DataError
from rorqual.core.records import MANIFEST_FILE, Message, RunDir, write_json
from rorqual.data.chat import TEMPLATE_FILE, load_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.model.adapter import ESFT, LoRA, Tune, trained_parameters
from rorqual.model.adapter.files import Adapter, record_base_checkpoint
from rorqual.model.attention import GQAConfig
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.ffn import DenseConfig
from rorqual.model.load.find import family_for
from rorqual.model.load.run_directory import load_run
from rorqual.recipes import make_run
from rorqual.recipes.models import v3_like
from rorqual.train.loop import fit

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TOKENS = torch.randint(0, 250, (2, 24), generator=torch.Generator().manual_seed(5))


def qwen3() -> ModelConfig:
    attention = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8, qk_norm=True)
    stage = Stage(layers=2, attention=attention, ffn=DenseConfig(intermediate_size=48))
    return ModelConfig(vocab_size=263, hidden_size=32, stages=(stage,), max_position_embeddings=64)


def v3() -> ModelConfig:
    return v3_like("tiny", vocab_size=263, context=64).model_copy(update={"num_nextn_predict_layers": 0})


def a_run(path: Path, model: ModelConfig, step: int, files: dict[str, bytes], more: str = "") -> RunDir:
    run = RunDir(path)
    run.step_dir(step).mkdir(parents=True)
    for name, content in files.items():
        (run.step_dir(step) / name).write_bytes(content)
    write_json(run.step_dir(step) / MANIFEST_FILE, {name: len(content) for name, content in files.items()})
    body = "".join(f"  {line}\n" for line in to_yaml(model).splitlines())
    run.config_file.write_text(f"recipe: test\nchat: deepseek\nmodel:\n{body}{more}", encoding="utf-8")
    Tokenizer.byte_level().save(run.tokenizer_file)
    return run


def a_base(path: Path, config: ModelConfig) -> RunDir:
    save_file({n: t.contiguous() for n, t in loud(config).state_dict().items()}, path.with_suffix(".tmp"))
    return a_run(path, config, 7, {"model.safetensors": path.with_suffix(".tmp").read_bytes()})


@torch.no_grad()
def an_adapter(path: Path, base: RunDir, tune: Tune, experts: Any = ()) -> RunDir:
    model = load_run(base)
    tune.attach(model, seed=1, experts=experts)
    generator = torch.Generator().manual_seed(4)
    for part in trained_parameters(model).values():
        part.copy_(0.3 * torch.randn(part.shape, generator=generator))
    path.mkdir()
    info = Adapter(
        base=record_base_checkpoint(base.checkpoint(), named=str(base.path), seen_from=path), tune=tune, experts=experts
    )
    return a_run(path, model.config, 3, info.file_contents(trained_parameters(model)))


def loaded(base: RunDir, folder: Path) -> Any:
    """The base in transformers, through a folder and our own map of names, which tests/parity proves."""
    model = load_run(base)
    family = family_for(model.config)
    data = family.config_to_hf(model.config)
    tensors: dict[str, Tensor] = family.name_map(model.config).to_hf(model.state_dict())
    folder.mkdir()
    write_json(folder / "config.json", data)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    kind = getattr(transformers, data["architectures"][0])
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def ours(run: RunDir) -> Tensor:
    model = load_run(run)
    with torch.no_grad():
        return model.logits(model(TOKENS).hidden)


def close(one: Tensor, other: Tensor) -> None:
    assert float((one - other).abs().max()) <= 1e-4 * float(one.abs().max())


CASES = [
    ("qwen3", qwen3(), LoRA(r=4, alpha=6.0)),
    ("qwen3 some", qwen3(), LoRA(r=3, alpha=1.5, use_rslora=True, targets=("q_proj", "layers.1.ffn.down_proj"))),
    ("v3", v3(), LoRA(r=4, alpha=8.0, targets=("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"))),
]


@pytest.mark.parametrize(("config", "tune"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_peft_loads_what_we_write_and_we_load_what_peft_saves(config: ModelConfig, tune: LoRA, tmp_path: Path) -> None:
    base = a_base(tmp_path / "base", config)
    run = an_adapter(tmp_path / "lora", base, tune)
    write_peft(run, tmp_path / "peft", base=str(tmp_path / "hf"))
    other = loaded(base, tmp_path / "hf")
    with torch.no_grad():
        plain = other(TOKENS).logits
        close(ours(base), plain)
        adapted = peft.PeftModel.from_pretrained(other, tmp_path / "peft")
        expected = adapted(TOKENS).logits
    assert float((plain - expected).abs().max()) > 0.1, "an adapter that changes nothing shows nothing"
    close(ours(run), expected)
    targets = json.loads((tmp_path / "peft" / CONFIG).read_text(encoding="utf-8"))["target_modules"]
    assert all(("." in name) == (tune.use_rslora and name != "q_proj") for name in targets)
    # And back, by peft's own hand.
    adapted.save_pretrained(tmp_path / "saved")
    back = RunDir(read_peft(tmp_path / "saved", base, tmp_path / "back"))
    assert torch.equal(ours(back), ours(run))
    write_peft(back, tmp_path / "again")
    first, again = (load_file(tmp_path / name / WEIGHTS) for name in ("peft", "again"))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return a_base(tmp_path_factory.mktemp("base") / "base", qwen3())


@pytest.fixture(scope="module")
def folder(base: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the base in PEFT's format."""
    place = tmp_path_factory.mktemp("peft")
    return write_peft(an_adapter(place / "lora", base, LoRA(r=4)), place / "peft")


def copy_of(folder: Path, place: Path, **changes: Any) -> Path:
    place.mkdir()
    write_json(place / CONFIG, json.loads((folder / CONFIG).read_text(encoding="utf-8")) | changes)
    (place / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    return place


def test_options_that_are_off_are_no_options(base: RunDir, folder: Path, tmp_path: Path) -> None:
    off: dict[str, Any] = {"use_dora": False, "modules_to_save": None, "rank_pattern": {}, "lora_dropout": 0.1}
    read_peft(copy_of(folder, tmp_path / "src", **off, a_new_option=None), base, tmp_path / "run")
    assert (tmp_path / "run/run.yaml").is_file()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"a_new_option": 3}, "a_new_option=3"),
        ({"r": 0}, "key 'r'"),
        ({"r": "four"}, "key 'r'"),
    ],
)
def test_other_options_are_refused_by_name(
    base: RunDir, folder: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        read_peft(copy_of(folder, tmp_path / "src", **changes), base, tmp_path / "run")
    assert CONFIG in error.value.where
    assert not (tmp_path / "run").exists()


def test_an_import_and_a_merge_prompt_with_the_template_of_their_base(folder: Path, tmp_path: Path) -> None:
    """A base of an unknown family: its template and its end token go with it. It trains on text, which needs no turns."""
    base, text = a_base(tmp_path / "base", qwen3()), "{% for m in messages %}{{ m.content }}|{% endfor %}"
    settings = base.config_file.read_text(encoding="utf-8")
    base.config_file.write_text(
        settings.replace("chat: deepseek", "chat: template\ngeneration: {eos_token_id: 1}"), encoding="utf-8"
    )
    (base.path / TEMPLATE_FILE).write_text(text, encoding="utf-8")
    merge_run(RunDir(read_peft(folder, base, tmp_path / "adapter")), tmp_path / "merged")
    tokenizer = Tokenizer.byte_level()
    for name in ("base", "adapter", "merged"):
        chat = load_chat(RunDir(tmp_path / name), tokenizer)
        assert (tokenizer.decode(chat.prompt((Message("user", "hi"),))), chat.stop_ids) == ("hi|", (1,))
    (tmp_path / "text.txt").write_text("some words " * 200, encoding="utf-8")
    arguments = {"data": str(tmp_path / "text.txt"), "from": str(base.path), "steps": "1", "rows": "1", "row": "32"}
    with pytest.raises(DataError, match="To train on plain text, set chat=none"):
        fit(make_run("pretrain", arguments), tmp_path / "run", quiet=True)
    fit(make_run("pretrain", arguments | {"chat": "none"}), tmp_path / "run", quiet=True)


def renamed(tensors: dict[str, Tensor], name: str) -> None:
    tensors[name.replace("layers.0", "layers.9")] = tensors.pop(name)


SPOILED: dict[str, tuple[Callable[[dict[str, Tensor], str], object], str]] = {
    "name": (renamed, r"layers\.9"),
    "shape": (lambda t, name: t.update({name: t[name][:, :-1].contiguous()}), "has shape"),
    "half": (lambda t, name: t.pop(name), "missing layers"),
    "nan": (lambda t, name: t[name][0].fill_(math.nan), "NaN"),
    "none": (lambda t, name: t.clear(), "no adapter tensors"),
}


@pytest.mark.parametrize("what", SPOILED)
def test_weights_that_do_not_fit_are_refused(base: RunDir, folder: Path, tmp_path: Path, what: str) -> None:
    src, (spoil, says) = copy_of(folder, tmp_path / "src"), SPOILED[what]
    tensors = load_file(src / WEIGHTS)
    spoil(tensors, sorted(tensors)[0])
    save_file(tensors, src / WEIGHTS)
    with pytest.raises(CheckpointError, match=says):
        read_peft(src, base, tmp_path / "run")
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob(".run*"))


def test_a_pickle_a_torn_file_and_another_rank_are_refused(base: RunDir, folder: Path, tmp_path: Path) -> None:
    src = copy_of(folder, tmp_path / "src", r=8)
    with pytest.raises(CheckpointError, match=r"not \(8, "):
        read_peft(src, base, tmp_path / "run")
    (src / WEIGHTS).write_bytes((src / WEIGHTS).read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="cannot read"):
        read_peft(src, base, tmp_path / "run")
    (src / WEIGHTS).rename(src / PICKLE)
    with pytest.raises(CheckpointError, match="not opened"):
        read_peft(src, base, tmp_path / "run")


def test_only_lora_is_written(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base", v3())
    for no_lora in (an_adapter(tmp_path / "esft", base, ESFT(), ((0, 3),)), base):
        with pytest.raises(ConfigError, match="not a LoRA"):
            write_peft(no_lora, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_what_peft_would_take_for_experts_is_not_written(tmp_path: Path) -> None:
    base = a_base(tmp_path / "base", v3())
    run = an_adapter(tmp_path / "lora", base, LoRA(targets=("o_proj", "shared_experts.up_proj")))
    with pytest.raises(
        ConfigError, match=r"routed experts instead of layers\.1\.ffn\.shared_experts\.up_proj"
    ) as error:
        write_peft(run, tmp_path / "peft")
    assert "rorqual merge" in error.value.remedy


def test_short_names_name_nothing_else() -> None:
    every = ["a.q_proj", "b.q_proj", "a.k_proj", "b.k_proj"]
    assert shortest_suffixes(["a.q_proj", "b.q_proj", "b.k_proj"], every) == ["q_proj", "b.k_proj"]
