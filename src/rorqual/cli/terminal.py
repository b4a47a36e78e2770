"""Terminal output and input of `rorqual chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from rich.console import Console

OPEN, CLOSE = "<think>", "</think>"


class Terminal:
    """A terminal that prints a reply as it is generated. Reasoning is dimmed. If the output is a pipe, the text is plain."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.notes = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._thinking = False

    def print_reasoning(self, text: str) -> None:
        """Print new reasoning text. Before a reply's first reasoning text, print `<think>`."""
        self._write(text if self._thinking else OPEN + text, "dim")
        self._thinking = True

    def print_answer(self, text: str) -> None:
        """Print new text of the answer. If a reasoning section is open, first close the section."""
        self.end_thinking()
        self._write(text, "")

    def print_note(self, text: str) -> None:
        """Print a note to the user on standard error, so that the note is not mixed with the reply."""
        self.notes.print(f"({text})", style="dim italic")

    def end_thinking(self) -> None:
        """If a reasoning section is open, close the section with `</think>`."""
        if self._thinking:
            self._write(f"{CLOSE}\n", "dim")
        self._thinking = False

    def end_reply(self) -> None:
        """Close an open reasoning section, and end the line after a reply."""
        self.end_thinking()
        self._write("\n", "")

    def _write(self, text: str, style: str) -> None:
        self.console.print(text, style=style, end="")
        self.console.file.flush()


def read_input_lines() -> Iterator[str]:
    """Yield non-empty lines of standard input until the input ends or a line is `/quit`. In a terminal, show an input
    prompt."""
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
