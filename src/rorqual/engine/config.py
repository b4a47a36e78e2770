"""The settings of an engine, once."""

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
    """Settings of an engine, which `Engine(run, ...)` and `Engine.of(model, ...)` take as keywords.

    slots: rows of each engine core's batch. max_len: tokens of the longest sequence, prompt and reply (None: the model's context).
    threads: engine cores that run at once. engine_cores: among how many the requests of one `generate` are divided.
    record_experts: give each completion the experts of each position. record_kept: and the sets that top-k and top-p left, a bit for each
    token of the vocabulary.
    reuse: keep the blocks of what ended, for prompts that begin alike. cache_dir: on disk, too, for the next start, up to `disk_bytes`.
    cache_bytes: memory of each engine core's keys and values. step_tokens: tokens of prompts in one step at most.
    pack: repack the weights once, for engines whose model nobody else holds (`Backend.prepare`).
    backend: the name of who computes: `torch-invariant`, or `torch`, which gives up bits that do not depend on the neighbours, for the time
    that they take (docs/engine.md).
    """

    slots: int = 256
    max_len: int | None = None
    threads: int = 1
    engine_cores: int = 2
    record_experts: bool = True
    record_kept: bool = False
    reuse: bool = True
    cache_dir: Path | None = None
    disk_bytes: int = 4 << 30
    cache_bytes: int = CACHE_BYTES
    step_tokens: int = 2048
    pack: bool = True
    backend: str = "torch-invariant"

    def check(self, model: Decoder, tokenizer: Tokenizer) -> None:
        """Raise where no engine can be made of `model` and `tokenizer` with these settings."""
        context = model.config.max_position_embeddings
        if self.max_len is not None and not 2 <= self.max_len <= context:
            raise ConfigError(
                f"max_len={self.max_len}, the model's context is {context}", where="engine", remedy="Lower it."
            )
        counts = {name: getattr(self, name) for name in ("slots", "threads", "engine_cores", "step_tokens")}
        if min(counts.values()) < 1:
            given = ", ".join(f"{name}={count}" for name, count in counts.items())
            raise ConfigError(given, where="engine", remedy="Use 1 or more.")
        weight = model.embed_tokens.weight
        if (reason := backend(self.backend).supports(weight.device, weight.dtype, model)) is not None:
            raise ConfigError(
                f"backend={self.backend} cannot run this model: {reason}", where="engine", remedy="Use another backend."
            )
        if tokenizer.vocab_size > model.config.vocab_size:
            raise DataError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model's vocabulary {model.config.vocab_size}",
                where="engine",
                remedy="Use the tokenizer that the model was trained with.",
            )
