"""Text files for pretraining. The last part of a text is held out for validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.core.rows import named_errors

TRAINED = 0.9
"""Share of the characters in the training part."""


@dataclass(frozen=True)
class Text:
    """A text, divided into a training part and a validation part."""

    train: str
    validation: str


def read_text(path: Path) -> Text:
    """Read UTF-8 text and hold out the last tenth of the characters for validation, as nanoGPT does."""
    path = Path(path)
    with named_errors(path):
        text = path.read_bytes().decode("utf-8-sig")
    if not text.strip():
        raise DataError("the file is empty", where=str(path), remedy="Give a file that contains data.")
    cut = int(len(text) * TRAINED)
    if not text[:cut].strip():
        raise DataError(
            f"the training part, the first {cut} of {len(text)} characters, has no text",
            where=str(path),
            remedy="Give a longer text.",
        )
    return Text(text[:cut], text[cut:])
