"""What an engine can be made of."""

from __future__ import annotations

from rorqual.core.errors import ConfigError, DataError
from rorqual.data.tokenizer import Tokenizer
from rorqual.model import Decoder


def check_set_up(model: Decoder, tokenizer: Tokenizer, max_len: int | None, counts: dict[str, int]) -> None:
    """Refuse what no engine can be made of."""
    context = model.config.max_position_embeddings
    if max_len is not None and not 2 <= max_len <= context:
        raise ConfigError(f"max_len={max_len}, the model's context is {context}", where="engine", remedy="Lower it.")
    if min(counts.values()) < 1:
        given = ", ".join(f"{name}={count}" for name, count in counts.items())
        raise ConfigError(given, where="engine", remedy="Use 1 or more.")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model's vocabulary {model.config.vocab_size}",
            where="engine",
            remedy="Use the tokenizer that the model was trained with.",
        )
