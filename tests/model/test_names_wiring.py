"""Names and files of weights: memory of their own, lists that are cut, and a run that is read key by key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from written_run import write_run

from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.model import ModelConfig, Stage, build
from rorqual.model.attention import GQAConfig, MLAConfig
from rorqual.model.ffn import DenseConfig, MoEConfig
from rorqual.model.load.find import family_for
from rorqual.model.load.run_directory import check_names, load_run, read_section

MLA = MLAConfig(num_attention_heads=2, kv_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=6)
MOE = MoEConfig(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, n_shared_experts=1)
GQA = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8, attention_bias=True)


def deepseek(*, tied: bool = False) -> ModelConfig:
    stages = (
        Stage(layers=1, attention=MLA, ffn=DenseConfig(intermediate_size=20)),
        Stage(layers=1, attention=MLA, ffn=MOE),
    )
    return ModelConfig(
        vocab_size=40, hidden_size=16, stages=stages, tie_word_embeddings=tied, num_nextn_predict_layers=2
    )


def dense() -> ModelConfig:
    stage = Stage(layers=2, attention=GQA, ffn=DenseConfig(intermediate_size=20))
    return ModelConfig(vocab_size=40, hidden_size=32, stages=(stage,))


@pytest.mark.parametrize("tied", [True, False])
def test_published_tensors_that_are_made_of_one_of_ours_or_copied_have_memory_of_their_own(tied: bool) -> None:
    """Writing to one changes no other, and safetensors takes them."""
    config = deepseek(tied=tied)
    names, state = family_for(config).name_map(config), build(config, seed=0).state_dict()
    hub = names.to_hf(state)
    made = [name for entry in names.entries if entry.kind != "alone" for name in entry.published] + list(names.copies)
    assert len(made) == 3 * 4 * 3 + 2 * 2 + tied
    places = {tensor.untyped_storage().data_ptr() for tensor in hub.values()}
    assert len(places) == len(hub)
    ours = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    assert not ours & {hub[name].untyped_storage().data_ptr() for name in made}


def test_a_copy_of_each_prediction_module_must_be_equal() -> None:
    """The last module's as well as the first one's, of embedding and head."""
    config = deepseek()
    names, state = family_for(config).name_map(config), build(config, seed=0).state_dict()
    for layer in (2, 3):
        for part, original in (("embed_tokens", "embed_tokens.weight"), ("shared_head.head", "lm_head.weight")):
            hub = names.to_hf(state)
            name = f"model.layers.{layer}.{part}.weight"
            assert torch.equal(hub[name], state[original])
            hub[name][-1, -1] += 1
            with pytest.raises(CheckpointError, match=f"{name} must be a copy of the main model's .*, but differs"):
                names.from_hf(hub)
            del hub[name]
            names.from_hf(hub)


def test_names_and_shapes_that_are_wrong_are_all_listed() -> None:
    wanted = {name: torch.zeros(2, 3) for name in "abc"}
    check_names(dict(wanted), wanted, where="there")
    with pytest.raises(
        CheckpointError, match=r"missing a; unexpected d; c has shape \(3, 2\), but the model needs \(2, 3\)"
    ):
        check_names({"b": wanted["b"], "c": torch.zeros(3, 2), "d": torch.zeros(1)}, wanted, where="there")


def test_a_run_of_other_weights_or_without_its_config_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, dense(), build(dense(), seed=0).state_dict())
    with pytest.raises(CheckpointError, match="key 'chat' is missing") as caught:
        read_section(run, "chat")
    assert caught.value.where == str(run.config_file)
    text = run.config_file.read_text(encoding="utf-8")
    run.config_file.write_text(text.replace("hidden_size: 32", "hidden_size: 36"), encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"embed_tokens.weight has shape \(40, 32\), but the model needs \(40, 36\)"
    ):
        load_run(run)
    run.config_file.write_text(text.replace("hidden_size", "hiden_size"), encoding="utf-8")
    with pytest.raises(ConfigError, match="Did you mean 'hidden_size'"):
        load_run(run)
    run.config_file.write_text(text, encoding="utf-8")
    (run.step_dir(1) / "model.safetensors").write_bytes(b"\0" * (run.step_dir(1) / "model.safetensors").stat().st_size)
    with pytest.raises(CheckpointError, match="cannot read"):
        load_run(run)
