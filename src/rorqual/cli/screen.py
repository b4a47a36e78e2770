"""Terminal output and input of `rorqual chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.console import Console

OPEN, CLOSE = "<think>", "</think>"


class Terminal:
    """Prints a reply piece by piece, with reasoning dimmed. In a pipe, the text has no colours."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.notes = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._thinking = False

    def reasoning(self, text: str) -> None:
        """Print a piece of reasoning, after `<think>` if it is the first."""
        self._write(text if self._thinking else OPEN + text, "dim")
        self._thinking = True

    def answer(self, text: str) -> None:
        """Print a piece of the answer."""
        self.end_thinking()
        self._write(text, "")

    def note(self, text: str) -> None:
        """Print a note of the program on standard error."""
        self.notes.print(f"({text})", style="dim italic")

    def end_thinking(self) -> None:
        """Print `</think>` if reasoning is open."""
        if self._thinking:
            self._write(f"{CLOSE}\n", "dim")
        self._thinking = False

    def end(self) -> None:
        """End the reply."""
        self.end_thinking()
        self._write("\n", "")

    def _write(self, text: str, style: str) -> None:
        self.console.print(text, style=style, end="")
        self.console.file.flush()


def lines_typed() -> Iterator[str]:
    """Yield non-empty lines from the terminal or a pipe, until the input ends or a line is `/quit`."""
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    if asks:
        import readline  # noqa: F401  (importing it gives `input` line editing and history)
    while True:
        try:
            text = input("\nyou> " if asks else "").strip()
        except EOFError:
            return
        if text == "/quit":
            return
        if text:
            yield text
