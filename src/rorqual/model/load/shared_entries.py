"""Tensor names that several checkpoint families share: embedding, head, norms, SwiGLU and experts."""

from __future__ import annotations

from collections.abc import Iterator

from rorqual.model.config import ModelConfig
from rorqual.model.ffn import MoEConfig
from rorqual.model.load.names import NameEntry


def embedding_and_head_entries(config: ModelConfig) -> Iterator[NameEntry]:
    """Yield the `NameEntry` of the embedding, the final norm and the head. A head that is tied to the embedding has no
    `NameEntry`."""
    yield NameEntry("embed_tokens.weight", ("model.embed_tokens.weight",))
    yield NameEntry("norm.weight", ("model.norm.weight",))
    if not config.tie_word_embeddings:
        yield NameEntry("lm_head.weight", ("lm_head.weight",))


def tied_head_copies(config: ModelConfig) -> dict[str, str]:
    """Map the name of a tied head to the name of the embedding, because some checkpoints store a tied head as a copy of the
    embedding.

    Return {} if the head is not tied to the embedding.
    """
    return {"lm_head.weight": "embed_tokens.weight"} if config.tie_word_embeddings else {}


def norm_entries(prefix: str, hf_prefix: str) -> Iterator[NameEntry]:
    """Yield the `NameEntry` of each of the two norms of a block."""
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield NameEntry(f"{prefix}.{name}.weight", (f"{hf_prefix}.{name}.weight",))


def swiglu_entries(prefix: str, hf_prefix: str) -> Iterator[NameEntry]:
    """Yield each `NameEntry` of a SwiGLU network (gate, up and down projections)."""
    for name in ("gate_proj", "up_proj", "down_proj"):
        yield NameEntry(f"{prefix}.{name}.weight", (f"{hf_prefix}.{name}.weight",))


def routed_expert_entries(ffn: MoEConfig, prefix: str, hf_prefix: str) -> Iterator[NameEntry]:
    """Yield each `NameEntry` of the router and of the stacked routed experts."""
    yield NameEntry(f"{prefix}.router.gate", (f"{hf_prefix}.gate.weight",))
    gate, up, down = (
        [f"{hf_prefix}.experts.{expert}.{part}_proj.weight" for expert in range(ffn.n_experts())]
        for part in ("gate", "up", "down")
    )
    yield NameEntry(f"{prefix}.experts.gate_up_proj", (*gate, *up), "pairs")
    yield NameEntry(f"{prefix}.experts.down_proj", tuple(down), "stack")
