"""Text files for pretraining. The last part of a text is held out for validation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.core.rows import named_errors


@dataclass(frozen=True)
class Text:
    """The training part and the validation part of a text."""

    train: str
    validation: str


def read_text(path: Path, *, validation: float = 0.1) -> Text:
    """Read UTF-8 text and hold out the end of the text for validation.

    `validation` is the fraction of characters to hold out. The default is 0.1, as in nanoGPT.
    """
    path = Path(path)
    if not 0 <= validation < 1:
        raise DataError(
            f"validation={validation} is not a fraction of the text", where=str(path), remedy="Use 0 to 0.99."
        )
    with named_errors(path):
        text = path.read_bytes().decode("utf-8-sig")
    if not text.strip():
        raise DataError("the file is empty", where=str(path), remedy="Give a file that contains data.")
    cut = int(len(text) * (1 - validation))
    if cut and not text[:cut].strip():
        raise DataError(
            "the training part is white space only", where=str(path), remedy="Give a file that contains text."
        )
    if not cut or (validation and cut == len(text)):
        raise DataError(
            f"{len(text)} characters are too few to hold out the fraction {validation:g}",
            where=str(path),
            remedy="Give a longer text.",
        )
    return Text(text[:cut], text[cut:])
