"""Commands as a user types them, each in a process of its own.

Importing torch takes longer than most of what is tested, so the processes are forked from one that has imported it; what they
run is the entry point `rorqual`, with their own arguments, folder, standard streams and exit code.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shlex
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

PRELOADED = [
    "rorqual.cli.main",
    "rorqual.recipes.quickstart",
    "rorqual.evals.perplexity",
    "rorqual.cli.inspecting",
    "rorqual.cli.generating",
    "skops.io",  # 3 s: it imports all of scikit-learn
    "sklearn.feature_extraction.text",
    "pandas",
    "pyarrow.dataset",
]
LIMIT = 300
"""Seconds after which a command counts as hanging."""


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code, and what it wrote to its two streams."""

    code: int
    out: str
    err: str


def typed(folder: Path, *words: str, stdin: str = "", without: Sequence[str] = ()) -> Done:
    """`rorqual WORDS` in `folder`, as if the packages `without` were not installed."""
    process = started(folder, *words, stdin=stdin, without=without)
    process.join(LIMIT)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"rorqual {' '.join(words)}")
    out, err = ((_streams(folder) / name).read_text(encoding="utf-8") for name in "12")
    return Done(process.exitcode if process.exitcode is not None else -1, out, err)


def started(folder: Path, *words: str, stdin: str = "", without: Sequence[str] = ()) -> BaseProcess:
    """`rorqual WORDS` in `folder`, running; the streams go through files beside it, so that the folder holds only what it wrote."""
    _streams(folder).mkdir(exist_ok=True)
    (_streams(folder) / "0").write_text(stdin, encoding="utf-8")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run, args=(str(folder), str(_streams(folder)), words, without))
    process.start()
    return process


def _streams(folder: Path) -> Path:
    return folder.parent / f"{folder.name}-streams"


def refused(place: Path, *words: str, says: Iterable[str], stdin: str = "", keeps: str | None = None) -> None:
    """`rorqual WORDS` in `place` is refused: its message holds all of `says`, and no file is changed or written but those whose names
    begin with `keeps`."""
    before = listing(place)
    done = typed(place, *words, stdin=stdin)
    assert done.code == 2, done.err
    assert "Traceback" not in done.out + done.err
    for part in says:
        assert part in done.err, f"{part!r} is not said: {done.err}"
    assert {
        name: hash for name, hash in listing(place).items() if keeps is None or not name.startswith(keeps)
    } == before


def _run(folder: str, streams: str, words: tuple[str, ...], without: Sequence[str]) -> None:
    for name in without:
        assert name not in sys.modules, f"{name} is imported before it is needed"
        sys.modules[name] = None  # type: ignore[assignment]
    files = enumerate((os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    _run_on(folder, [os.open(os.path.join(streams, str(number)), flags) for number, flags in files], list(words))


def _run_on(folder: str, streams: list[int], words: list[str]) -> None:
    from rorqual.cli.main import main

    os.chdir(folder)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # multiprocessing gives a child /dev/null to read from, and forked streams keep the encoding of their parent.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
    sys.argv = ["rorqual", *words]
    main()


CLIENT = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as door:
    door.connect({door!r})
    said = "\\0".join([os.getcwd(), *sys.argv[1:]]).encode()
    socket.send_fds(door, [said], [0, 1, 2])
    sys.exit(int(door.recv(16) or b"70"))
"""
"""What stands for `rorqual` where commands are forked: it hands over its folder, words and streams, and ends as the command did."""


@contextmanager
def forked_commands(folder: Path) -> Iterator[Path]:
    """A folder for PATH whose program `rorqual` is run in a process that is forked from one that has imported torch, with the caller's folder,
    words and streams; the environment is that of this process."""
    (folder / "client.py").write_text(CLIENT.format(door=str(folder / "door")), encoding="utf-8")
    program = folder / "rorqual"
    client = shlex.join([sys.executable, "-ISE", str(folder / "client.py")])
    program.write_text(f'#!/bin/sh\nexec {client} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(folder / "door"))
        door.listen()
        threading.Thread(target=_fork_all, args=(door,), daemon=True).start()
        yield folder
        door.shutdown(socket.SHUT_RDWR)


def _fork_all(door: socket.socket) -> None:
    while True:
        try:
            caller, _ = door.accept()
        except OSError:
            return
        threading.Thread(target=_fork_one, args=(caller,), daemon=True).start()


def _fork_one(caller: socket.socket) -> None:
    with caller:
        said, streams, _, _ = socket.recv_fds(caller, 1 << 20, 3)
        place, *words = said.decode().split("\0")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        process = context.Process(target=_run_on, args=(place, [_Stream(fd) for fd in streams], words))
        process.start()
        for fd in streams:
            os.close(fd)
        # A caller that is killed closes its end. The command must not outlive it.
        if caller in connection.wait([process.sentinel, caller]):
            process.kill()
            return
        process.join()
        caller.send(str(process.exitcode & 255 if process.exitcode is not None else 70).encode())


class _Stream:
    """A file descriptor on its way into a process that is being started."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return _detached, (DupFd(self.number),)


def _detached(sent: Any) -> int:
    number: int = sent.detach()
    return number


def listing(folder: Path) -> dict[str, str]:
    """Every file below `folder` with a hash of its bytes, and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }
