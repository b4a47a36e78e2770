"""Start the processes of one training with torchrun's elastic agent."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rorqual.core.errors import RorqualError
from rorqual.dist.ranks import RankError

INTERRUPTED = 130
"""Exit status of an interrupted command."""
RESTARTS = 3
"""Number of restarts without a new checkpoint after which `launch` gives up."""
SHOWN = 20
"""Number of lines of a rank's log that an error shows."""


def launch(arguments: Sequence[str], processes: int, *, logs: Path, newest: Callable[[], object]) -> None:
    """Run `python ARGUMENTS` in `processes` processes on this machine, which call `ranks.joined`.

    Rank 0 writes to the console, and each other rank to files below `logs`, which is removed at the end. If a process is killed or
    does not answer, all processes are started again: at most `RESTARTS` times until `newest()`, the newest checkpoint, has changed.

    Raises RorqualError if a process fails otherwise.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the errors below say the same
    restarts = 0
    while True:
        before, config = newest(), _config(processes, logs)
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except SignalException as error:
            raise KeyboardInterrupt from error
        except ChildFailedError as error:
            restarts = 0 if newest() != before else restarts + 1
            # The agent ends the other ranks by SIGTERM, which some take as an interruption.
            ended = {rank: failure.exitcode for rank, failure in error.failures.items()}
            codes = {rank: code for rank, code in ended.items() if code not in (-signal.SIGTERM, INTERRUPTED)} or ended
            failed = {rank: code for rank, code in codes.items() if code > 0 and code != RankError.exit_status}
            if 0 in failed:
                _remove(logs)
                sys.exit(failed[0])  # rank 0 has printed its error
            if failed or restarts > RESTARTS:
                raise _error(failed or codes, logs, restarts) from error
            print(f"{_describe(codes)}; all ranks start again from the newest checkpoint", file=sys.stderr, flush=True)
        else:
            _remove(logs)
            return


def _remove(logs: Path) -> None:
    shutil.rmtree(logs, ignore_errors=True)
    with suppress(OSError):
        logs.parent.rmdir()  # a run that was refused leaves no folder


def _config(processes: int, logs: Path) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="rorqual",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(
            log_dir=str(logs), redirects=dict.fromkeys(range(1, processes), Std.ALL) | {0: Std.NONE}
        ),
    )


def _describe(codes: dict[int, int]) -> str:
    """Describe how ranks ended, such as `rank 1 was ended by SIGKILL`."""
    killed = {rank: code for rank, code in codes.items() if code < 0}
    named = killed or codes
    return ", ".join(
        f"rank {rank} " + (f"was ended by {signal.Signals(-code).name}" if code < 0 else "lost another rank")
        for rank, code in sorted(named.items())
    )


def _error(codes: dict[int, int], logs: Path, restarts: int) -> RorqualError:
    """Return the error for ranks that failed with the exit statuses `codes`, with the end of a log."""
    if restarts > RESTARTS:
        return RorqualError(
            f"{_describe(codes)}, {restarts} times without a new checkpoint",
            where=str(logs),
            remedy="Use fewer processes if memory is short. The same command resumes.",
        )
    rank = min(codes)
    files = sorted(logs.glob(f"*/attempt_0/{rank}/std*.log"), key=lambda path: path.stat().st_mtime)
    lines = [line for file in files[-2:] for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
    return RorqualError("\n".join([f"rank {rank} failed with status {codes[rank]}", *lines[-SHOWN:]]), where=str(logs))
