"""Commands as a user types them, each in a process of its own.

Importing torch takes longer than most of what is tested, so the processes are forked from one that has imported it; what they
run is the entry point `rorqual`, with their own arguments, folder, standard streams and exit code.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sys
from dataclasses import dataclass
from pathlib import Path

PRELOADED = [
    "rorqual.cli.main",
    "rorqual.recipes.quickstart",
    "rorqual.evals.perplexity",
    "rorqual.cli.accounts",
    "torch._dynamo",  # torch's optimizers import it when the first one is built
]
LIMIT = 300
"""Seconds after which a command counts as hanging."""


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code, and what it wrote to its two streams."""

    code: int
    out: str
    err: str


def typed(folder: Path, *words: str, stdin: str = "") -> Done:
    """`rorqual WORDS` in `folder`; the streams go through files beside it, so that the folder holds only what it wrote."""
    streams = folder.parent / f"{folder.name}-streams"
    streams.mkdir(exist_ok=True)
    (streams / "0").write_text(stdin, encoding="utf-8")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run, args=(str(folder), str(streams), words))
    process.start()
    process.join(LIMIT)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"rorqual {' '.join(words)}")
    out, err = ((streams / name).read_text(encoding="utf-8") for name in "12")
    return Done(process.exitcode if process.exitcode is not None else -1, out, err)


def _run(folder: str, streams: str, words: tuple[str, ...]) -> None:
    from rorqual.cli.main import main

    os.chdir(folder)
    for number, flags in enumerate(
        (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    ):
        os.dup2(os.open(os.path.join(streams, str(number)), flags), number)
    # multiprocessing gives a child /dev/null to read from, and forked streams keep the encoding of their parent.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
    sys.argv = ["rorqual", *words]
    main()


def listing(folder: Path) -> dict[str, str]:
    """Every file below `folder` with a hash of its bytes, and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }
