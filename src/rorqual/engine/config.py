"""The settings of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rorqual.core.errors import ConfigError, DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.model import Decoder
from rorqual.ops.backends import backend

CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class EngineConfig:
    """Settings that `Engine(run, ...)` and `Engine.of(model, ...)` take as keywords."""

    slots: int = 256
    """Rows in the batch of each engine core: the maximum number of sequences that it runs at once."""
    max_len: int | None = None
    """Maximum number of tokens in a sequence, prompt and reply. None means the model's context length."""
    threads: int = 1
    """Engine cores that run at the same time."""
    engine_cores: int = 2
    """Engine cores among which one `generate` call may divide its requests."""
    record_experts: bool = True
    """Record the experts that served each position (`Completion.experts`)."""
    record_kept: bool = False
    """Record the tokens that top-k and top-p left for each draw, one bit per token of the vocabulary
    (`Completion.kept`)."""
    reuse: bool = True
    """Keep the KV-cache blocks of finished sequences for later prompts with the same prefix."""
    cache_dir: Path | None = None
    """Folder that keeps these blocks on disk for the next start. None turns the disk cache off."""
    disk_bytes: int = 4 << 30
    """Maximum number of bytes in `cache_dir`."""
    cache_bytes: int = CACHE_BYTES
    """Bytes of the KV cache of each engine core."""
    step_tokens: int = 2048
    """Maximum number of tokens that one step computes, prefill and decode."""
    pack: bool = True
    """Repack the weights once for fast reads (`Backend.prepare`). Only for a model that no other code uses."""
    backend: str = "torch-invariant"
    """Backend that runs the model. `torch` is faster than `torch-invariant`, but its results depend on the rest of the
    batch (docs/explanation/engine.md)."""

    def check(self, model: Decoder, tokenizer: Tokenizer) -> None:
        """Check these settings against a model and its tokenizer.

        Raises ConfigError for a setting that does not fit, and DataError if the tokenizer has more tokens than the
        model.
        """
        context = model.config.max_position_embeddings
        if self.max_len is not None and not 2 <= self.max_len <= context:
            raise ConfigError(
                f"max_len={self.max_len} is not between 2 and the model's context length of {context}",
                where="engine",
                remedy="Set max_len within this range.",
            )
        counts = {name: getattr(self, name) for name in ("slots", "threads", "engine_cores", "step_tokens")}
        if min(counts.values()) < 1:
            given = ", ".join(f"{name}={count}" for name, count in counts.items())
            raise ConfigError(f"a count is below 1: {given}", where="engine", remedy="Set each to 1 or more.")
        weight = model.embed_tokens.weight
        if (reason := backend(self.backend).supports(weight.device, weight.dtype, model)) is not None:
            raise ConfigError(
                f"backend={self.backend} cannot run this model: {reason}",
                where="engine",
                remedy="Choose another backend.",
            )
        if tokenizer.vocab_size > model.config.vocab_size:
            raise DataError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocabulary has {model.config.vocab_size}",
                where="engine",
                remedy="Use the tokenizer that the model was trained with.",
            )
