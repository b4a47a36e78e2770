"""What the published names of several families share: embedding and head, norms, SwiGLU, experts."""

from __future__ import annotations

from collections.abc import Iterator

from rorqual.model.config import ModelConfig
from rorqual.model.ffn import MoEConfig
from rorqual.model.load.names import NameEntry, stacked, stacked_pairs


def ends(config: ModelConfig) -> Iterator[NameEntry]:
    """Embedding, last norm and, where it is not the embedding, the head."""
    yield NameEntry("embed_tokens.weight", ("model.embed_tokens.weight",))
    yield NameEntry("norm.weight", ("model.norm.weight",))
    if not config.tie_word_embeddings:
        yield NameEntry("lm_head.weight", ("lm_head.weight",))


def tied_head(config: ModelConfig) -> dict[str, str]:
    """A tied head is the embedding, which some checkpoints repeat."""
    return {"lm_head.weight": "embed_tokens.weight"} if config.tie_word_embeddings else {}


def norms(ours: str, theirs: str) -> Iterator[NameEntry]:
    """The two norms of a block."""
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield NameEntry(f"{ours}.{name}.weight", (f"{theirs}.{name}.weight",))


def swiglu(ours: str, theirs: str) -> Iterator[NameEntry]:
    """A dense feed-forward network."""
    for name in ("gate_proj", "up_proj", "down_proj"):
        yield NameEntry(f"{ours}.{name}.weight", (f"{theirs}.{name}.weight",))


def routed(ffn: MoEConfig, ours: str, theirs: str) -> Iterator[NameEntry]:
    """Router and routed experts."""
    yield NameEntry(f"{ours}.router.gate", (f"{theirs}.gate.weight",))
    gate, up, down = (
        [f"{theirs}.experts.{expert}.{part}_proj.weight" for expert in range(ffn.n_experts())]
        for part in ("gate", "up", "down")
    )
    yield stacked_pairs(f"{ours}.experts.gate_up_proj", gate, up)
    yield stacked(f"{ours}.experts.down_proj", down)
