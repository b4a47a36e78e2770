"""Run trials of grammars and validate finished answers in a separate process (`trial_process.py`), which can be killed at any time."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rorqual.engine.grammar.trial_process import MEMORY, MISMATCH, SECONDS

EXCEEDED = f"takes more than {SECONDS} s of CPU time or {MEMORY >> 20} MB of memory, or fails otherwise"


@dataclass(frozen=True)
class LlguidanceGrammar:
    """A grammar in llguidance's format. `schema` is the JSON schema against which finished answers are validated, if the
    grammar has one."""

    text: str
    schema: dict[str, Any] | None = None
    name: str = ""
    """The name of the function whose arguments the grammar describes. Error messages show the function's name."""


@dataclass(frozen=True)
class FinishedAnswer:
    """The JSON text of a finished answer, with its JSON schema. `name` is the name of the function whose arguments `answer` contains."""

    answer: str
    schema: dict[str, Any]
    name: str = ""


class TrialProcess:
    """A process that runs trials of grammars and of finished answers, and starts at the first trial. Only one trial may run at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._running: threading.Event | None = None  # stops the trial that runs
        self._lock = threading.Lock()

    def find_first_error(
        self,
        parts: Sequence[LlguidanceGrammar | FinishedAnswer],
        tokenizer: Mapping[str, Any],
        stopped: threading.Event,
    ) -> dict[str, str]:
        """Return the name and the error of the first grammar in `parts` that cannot be used, or of the first finished answer that
        violates its schema. Return {} if there is no error.

        `tokenizer` has the arguments of `build_vocabulary`. If `stop(stopped)` is called, `find_first_error` raises
        CancelledError.
        """
        with self._lock:
            if stopped.is_set():
                raise CancelledError
            process, self._running = self._start_process(tokenizer), stopped
            _send(process, [asdict(part) for part in parts])
        assert process.stdout is not None
        line = process.stdout.readline()
        with self._lock:
            self._running = None
        if stopped.is_set():
            raise CancelledError
        if not line:  # for example, the operating system ended the process because memory is short
            self.close()
        if line.strip():
            return dict(json.loads(line))
        work = f"{MISMATCH}: to check it" if isinstance(parts[0], FinishedAnswer) else "compiling it"
        return {"name": "", "error": f"{work} {EXCEEDED}"}

    def stop(self, stopped: threading.Event) -> None:
        """Kill the trial that was started with `stopped`, if this trial is still running."""
        with self._lock:
            if self._process is not None and self._running is stopped:
                _send(self._process, None)

    def close(self) -> None:
        """End the trial process and the running trial."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.wait()
        process.stdout.close()

    def _start_process(self, tokenizer: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        if self._process is None:
            script = Path(__file__).with_name("trial_process.py")
            command = [sys.executable, "-P", str(script)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            _send(self._process, dict(tokenizer))
        return self._process


def _send(process: subprocess.Popen[bytes], message: Any) -> None:
    """Send a message to a trial process. If `message` is None, send an empty message, which kills the running fork."""
    data = b"" if message is None else json.dumps(message).encode()
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # if the process has ended, the next read from it fails
        process.stdin.write(b"%d\n" % len(data) + data)
        process.stdin.flush()
