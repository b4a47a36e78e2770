"""A text file to pretrain on, with its last part held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rorqual.core.errors import DataError
from rorqual.data.source.files import decode, read_bytes


@dataclass(frozen=True)
class Text:
    """The two parts of a text, as they stand in the file, so that their lengths are in characters."""

    train: str
    validation: str


def read_text(path: Path, *, validation: float = 0.1) -> Text:
    """Read UTF-8 text; the last `validation` of its characters are held out (nanoGPT holds out the last tenth)."""
    path = Path(path)
    if not 0 <= validation < 1:
        raise DataError(f"validation={validation} is no share", where=str(path), remedy="Use 0 to 0.99.")
    text = decode(read_bytes(path), str(path))
    cut = int(len(text) * (1 - validation))
    if cut and not text[:cut].strip():
        raise DataError("nothing but white space to train on", where=str(path), remedy="Give a file with a text in it.")
    if not cut or (validation and cut == len(text)):
        raise DataError(
            f"{len(text)} characters are too few to hold out {validation:g} of them",
            where=str(path),
            remedy="Give a longer text.",
        )
    return Text(text[:cut], text[cut:])
