"""Names and shapes of weights are listed where they are wrong, and a run is read key by key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from written_run import write_run

from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.model import ModelConfig, Stage, build
from rorqual.model.attention import GQAConfig
from rorqual.model.ffn import DenseConfig, map_older_names
from rorqual.model.load.run_directory import check_names, load_run, read_section

GQA = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_bias=True)


def dense() -> ModelConfig:
    stage = Stage(layers=2, attention=GQA, ffn=DenseConfig(intermediate_size=20))
    return ModelConfig(vocab_size=40, hidden_size=32, stages=(stage,))


def test_names_and_shapes_that_are_wrong_are_all_listed() -> None:
    wanted = {name: torch.zeros(2, 3) for name in "abc"}
    check_names(dict(wanted), wanted, where="there")
    with pytest.raises(CheckpointError, match=r"missing a, unexpected d, c has shape \(3, 2\), not \(2, 3\)"):
        check_names({"b": wanted["b"], "c": torch.zeros(3, 2), "d": torch.zeros(1)}, wanted, where="there")


def test_a_run_of_other_weights_or_without_its_config_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, dense(), build(dense(), seed=0).state_dict())
    with pytest.raises(CheckpointError, match="key 'chat' is missing") as caught:
        read_section(run, "chat")
    assert caught.value.where == str(run.config_file)
    text = run.config_file.read_text(encoding="utf-8")
    run.config_file.write_text(text.replace("hidden_size: 32", "hidden_size: 36"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight has shape \(40, 32\), not \(40, 36\)"):
        load_run(run)
    run.config_file.write_text(text.replace("hidden_size", "hiden_size"), encoding="utf-8")
    with pytest.raises(ConfigError, match="Did you mean 'hidden_size'"):
        load_run(run)
    run.config_file.write_text(text, encoding="utf-8")
    (run.step_dir(1) / "model.safetensors").write_bytes(b"\0" * (run.step_dir(1) / "model.safetensors").stat().st_size)
    with pytest.raises(CheckpointError, match="cannot read"):
        load_run(run)


def test_only_a_routers_tensors_had_other_names() -> None:
    today = ["layers.1.ffn.router.gate", "layers.1.ffn.experts.down_proj", "layers.2.ffn.gate", "lm_head.weight"]
    assert map_older_names(today) == {"layers.1.ffn.gate": "layers.1.ffn.router.gate"}
    assert map_older_names([*today, "layers.2.ffn.router.gate"]) == map_older_names(today), (
        "layer 2 has a gate of its own, too"
    )
