"""The loss of a model on a plain text, by passage. `rorqual eval RUN data=FILE.txt` writes one JSON file."""

from __future__ import annotations

import math
from pathlib import Path

from rorqual.core.config import Count
from rorqual.core.records import write_json
from rorqual.evals.evaluation import Provenance


class TextLoss(Provenance):
    """The loss of a model on a text. `losses` has the mean loss of each passage, in nats per token.

    A passage has `window` tokens. Each token is predicted once, from at most `window` preceding tokens. `passages` is a digest of
    the passages' texts: only losses with equal `passages` can be paired. `text` is the path of the text. `characters` and `bytes`
    count the predicted text.
    """

    text: str = ""
    window: Count
    passages: str
    losses: tuple[float, ...]
    characters: Count
    bytes: Count

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""
        return self.window * len(self.losses)

    @property
    def per_token(self) -> float:
        """The mean loss per token in nats."""
        return math.fsum(self.losses) / len(self.losses)

    @property
    def per_character(self) -> float:
        """The mean loss per character in nats."""
        return self.per_token * self.tokens / self.characters

    @property
    def bits_per_byte(self) -> float:
        """The mean loss per byte in bits."""
        return self.per_token * self.tokens / self.bytes / math.log(2)

    @property
    def perplexity(self) -> float:
        """The exponential of the loss per token."""
        return math.exp(self.per_token)

    def report(self) -> str:
        """Return the losses per token, per character and per byte as text."""
        return "\n".join(
            [
                f"{self.model} on the last tenth of {self.text}: {self.tokens:,} tokens, {self.characters:,} characters,",
                f"each predicted once, from at most {self.window} tokens before it.",
                f"  loss per token      {self.per_token:.4f} nats (perplexity {self.perplexity:.2f})",
                f"  loss per character  {self.per_character:.4f} nats",
                f"  bits per byte       {self.bits_per_byte:.4f}",
            ]
        )

    def save(self, path: Path) -> None:
        """Write the losses as JSON, atomically."""
        write_json(path, self.model_dump(mode="json"))
