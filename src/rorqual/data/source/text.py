"""Text files for pretraining. The last part of a text is held out for validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.core.rows import name_file_in_read_errors

TRAINED = 0.9
"""Share of a text's characters that belong to the training part."""


@dataclass(frozen=True)
class TextSplit:
    """A text, divided into a training part and a validation part."""

    train: str
    validation: str


def read_text_split(path: Path) -> TextSplit:
    """Read UTF-8 text and hold out the last tenth of the characters for validation, as nanoGPT does."""
    path = Path(path)
    with name_file_in_read_errors(path):
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
    return TextSplit(text[:cut], text[cut:])
