"""Terminal output and input of `rorqual chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.console import Console

OPEN, CLOSE = "<think>", "</think>"


class Terminal:
    """A terminal that prints a reply as it is generated. Reasoning is dimmed; a pipe gets plain text."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.notes = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._thinking = False

    def print_reasoning(self, text: str) -> None:
        """Print new reasoning text. The first text of a reply is preceded by `<think>`."""
        self._write(text if self._thinking else OPEN + text, "dim")
        self._thinking = True

    def print_answer(self, text: str) -> None:
        """Print new text of the answer. If reasoning is open, close it first."""
        self.end_thinking()
        self._write(text, "")

    def print_note(self, text: str) -> None:
        """Print a note to the user on standard error, so that it is not mixed with the reply."""
        self.notes.print(f"({text})", style="dim italic")

    def end_thinking(self) -> None:
        """Close the reasoning with `</think>` if it is open."""
        if self._thinking:
            self._write(f"{CLOSE}\n", "dim")
        self._thinking = False

    def end_reply(self) -> None:
        """Close open reasoning, and end the line after a reply."""
        self.end_thinking()
        self._write("\n", "")

    def _write(self, text: str, style: str) -> None:
        self.console.print(text, style=style, end="")
        self.console.file.flush()


def read_input_lines() -> Iterator[str]:
    """Yield non-empty lines of standard input until it ends or a line is `/quit`. In a terminal, show a prompt."""
    is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if is_interactive:
        import readline  # noqa: F401  (the import adds line editing and history to `input`)
    while True:
        try:
            text = input("\nyou> " if is_interactive else "").strip()
        except EOFError:
            return
        if text == "/quit":
            return
        if text:
            yield text
