"""Settings of the inference engine."""

from __future__ import annotations

from pathlib import Path

from rorqual.core.config import Bytes, Config, Count
from rorqual.core.errors import ConfigError, DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.native.native_backend import Native  # noqa: F401  # registers the backend
from rorqual.model import Decoder
from rorqual.ops.backends import backend

CACHE_BYTES = 1 << 30


class EngineConfig(Config):
    """Settings that `Engine(run, ...)` and `Engine.of(model, ...)` take as keywords."""

    slots: Count = 256
    """Maximum number of sequences in the running batch of each engine core."""
    max_len: Count | None = None
    """Maximum number of tokens in a sequence, prompt and reply together. If `max_len` is None, the maximum is the model's
    context length."""
    threads: Count = 1
    """Maximum number of engine cores that run at the same time. Each engine core runs in its own thread."""
    engine_cores: Count = 2
    """Maximum number of engine cores that share the requests of one `generate` call."""
    record_experts: bool = True
    """Record the experts to which the router sent each token (`Completion.experts`)."""
    record_kept: bool = False
    """At each sampling step, record which tokens remain after top-k and top-p filtering (`Completion.kept`). `Completion.kept`
    has one bit per vocabulary token for each sampling step."""
    reuse: bool = True
    """Enable prefix caching: later prompts with the same prefix reuse the KV-cache blocks of finished sequences."""
    cache_dir: Path | str | None = None
    """Folder of the on-disk prefix cache, which survives a restart. If `cache_dir` is None, there is no on-disk prefix
    cache."""
    disk_bytes: Bytes = 4 << 30
    """Maximum size of the on-disk prefix cache in `cache_dir`, in bytes."""
    cache_bytes: Bytes = CACHE_BYTES
    """Size of each engine core's KV cache in bytes."""
    step_tokens: Count = 2048
    """Maximum number of prefill and decode tokens in one engine step, counted together."""
    pack: bool = True
    """Repack the weights at load time for faster matrix products (`Backend.prepare`).

    After repacking, the engine ignores changes of the original weights, so no other code may change the weights.
    """
    backend: str = "auto"
    """Backend that runs the model. `auto` is `native`, the fastest, if it supports the model, else `torch-invariant`. With `torch`, the
    completion of a request depends on which other requests are in the batch (docs/explanation/engine.md)."""

    def check(self, model: Decoder, tokenizer: Tokenizer) -> None:
        """Validate the engine settings for a model and its tokenizer.

        Raises ConfigError if `max_len` is out of range or the backend does not support the model. Raises DataError if the
        tokenizer has more tokens than the model's vocabulary.
        """
        context = model.config.max_position_embeddings
        if self.max_len is not None and not 2 <= self.max_len <= context:
            raise ConfigError(
                f"max_len={self.max_len} is not between 2 and the model's context length of {context}",
                where="engine",
                remedy="Set max_len within this range.",
            )
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
