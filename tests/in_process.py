"""Commands as a user types them, run in the process of the test."""

from __future__ import annotations

from typer.testing import CliRunner

from rorqual.cli.main import app


def output_of(*words: str, code: int = 0, stdin: str = "") -> str:
    """What `rorqual WORDS` prints. It must end with `code`."""
    done = CliRunner().invoke(app, list(words), input=stdin, catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output
