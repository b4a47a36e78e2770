"""The server's own process is light: it has the tokenizer and the chat format, and never loads torch."""

from __future__ import annotations

import subprocess
import sys


def test_the_server_loads_without_torch() -> None:
    code = "import sys, rorqual.serve.server, rorqual.cli.serving; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
