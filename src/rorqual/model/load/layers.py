"""Published tensor names that several families share: embedding and head, norms, SwiGLU, experts."""

from __future__ import annotations

from collections.abc import Iterator

from rorqual.model.config import ModelConfig
from rorqual.model.ffn import MoEConfig
from rorqual.model.load.names import NameEntry, stacked, stacked_pairs


def ends(config: ModelConfig) -> Iterator[NameEntry]:
    """Yield the embedding, the final norm and the head, unless the head is tied to the embedding."""
    yield NameEntry("embed_tokens.weight", ("model.embed_tokens.weight",))
    yield NameEntry("norm.weight", ("model.norm.weight",))
    if not config.tie_word_embeddings:
        yield NameEntry("lm_head.weight", ("lm_head.weight",))


def tied_head(config: ModelConfig) -> dict[str, str]:
    """Return the copy of a tied head: it equals the embedding, which some checkpoints store twice."""
    return {"lm_head.weight": "embed_tokens.weight"} if config.tie_word_embeddings else {}


def norms(ours: str, theirs: str) -> Iterator[NameEntry]:
    """Yield the two norms of a block."""
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield NameEntry(f"{ours}.{name}.weight", (f"{theirs}.{name}.weight",))


def swiglu(ours: str, theirs: str) -> Iterator[NameEntry]:
    """Yield the matrices of a dense feed-forward network."""
    for name in ("gate_proj", "up_proj", "down_proj"):
        yield NameEntry(f"{ours}.{name}.weight", (f"{theirs}.{name}.weight",))


def routed(ffn: MoEConfig, ours: str, theirs: str) -> Iterator[NameEntry]:
    """Yield the router and the routed experts."""
    yield NameEntry(f"{ours}.router.gate", (f"{theirs}.gate.weight",))
    gate, up, down = (
        [f"{theirs}.experts.{expert}.{part}_proj.weight" for expert in range(ffn.n_experts())]
        for part in ("gate", "up", "down")
    )
    yield stacked_pairs(f"{ours}.experts.gate_up_proj", gate, up)
    yield stacked(f"{ours}.experts.down_proj", down)
