"""The terminal's side of a chat: thinking dimmed, notes apart, plain text in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.console import Console

OPEN, CLOSE = "<think>", "</think>"


class Terminal:
    """Shows a reply piece by piece. In a pipe the text is the same, without colours."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.notes = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._thinking = False

    def reasoning(self, text: str) -> None:
        """Part of what stands between `<think>` and `</think>`."""
        self._write(text if self._thinking else OPEN + text, "dim")
        self._thinking = True

    def answer(self, text: str) -> None:
        """Part of the answer."""
        self.end_thinking()
        self._write(text, "")

    def note(self, text: str) -> None:
        """What the model did not say; on standard error."""
        self.notes.print(f"({text})", style="dim italic")

    def end_thinking(self) -> None:
        """Close the thought, if one is open."""
        if self._thinking:
            self._write(f"{CLOSE}\n", "dim")
        self._thinking = False

    def end(self) -> None:
        """The reply is over."""
        self.end_thinking()
        self._write("\n", "")

    def _write(self, text: str, style: str) -> None:
        self.console.print(text, style=style, end="")
        self.console.file.flush()


def lines_typed() -> Iterator[str]:
    """What a person types, or each line of a pipe, up to its end or `/quit`."""
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    if asks:
        import readline  # noqa: F401  (its import gives `input` a history and editing)
    while True:
        try:
            text = input("\nyou> " if asks else "").strip()
        except EOFError:
            return
        if text == "/quit":
            return
        if text:
            yield text
