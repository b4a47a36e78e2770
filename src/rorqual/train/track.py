"""Copy a run's metrics to TensorBoard or Weights & Biases during training.

`metrics.jsonl` remains the source of truth. At the first step of a process, a tracker deletes its old output folder and copies
all earlier steps from `metrics.jsonl`. A resumed run therefore has every step exactly once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rorqual.core.errors import ConfigError
from rorqual.core.extras import require_extra
from rorqual.core.lock import acquire_run_lock
from rorqual.core.records import RunDir
from rorqual.core.registry import Registered, find_kinds, kinds

Record = dict[str, Any]
Log = Callable[[int, dict[str, float]], None]
PROJECT = "rorqual"


class Tracker(Registered):
    """Base class of trackers. A subclass is selected by its `name`: `track=NAME`."""

    package: str
    """The Python package that the tracker needs."""

    def open(self, out: RunDir, folder: Path) -> AbstractContextManager[Log]:
        """Open the tracker of the run `out`, whose output goes to `folder`. Yield a function that logs the values of a step.

        The tracker deletes earlier output in `folder`, because all earlier steps are logged again.
        """
        raise NotImplementedError


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError if a tracker is unknown or not installed."""
    for name in names:
        if name not in (known := find_kinds(Tracker, name)):
            raise ConfigError(
                f"unknown tracker '{name}'",
                where="track",
                remedy=f"Give one or several of {', '.join(known)}, separated by commas.",
            )
        package = known[name].package
        with require_extra(name, package):
            if find_spec(package) is None:
                raise ModuleNotFoundError(f"No module named '{package}'", name=package)


@contextmanager
def open_trackers(names: Sequence[str], out: RunDir) -> Iterator[Callable[[Record], None] | None]:
    """Yield a function for `fit(observe=...)` that writes the numbers of each record to the trackers `names`.

    Yields None if `names` is empty. Each tracker writes to the subfolder of `out` with the tracker's name, and also stores the
    run's config there. If the run was finished before, all its steps are written at the end of the `with` block.

    Raises ConfigError if a tracker is unknown or not installed.
    """
    folder = out.path.absolute()
    check_trackers(names)
    for name in names:
        with require_extra(name, kinds(Tracker)[name].package):
            import_module(kinds(Tracker)[name].package)
    with ExitStack() as stack:
        logs: list[Log] = []

        def write(records: Iterable[Record]) -> None:
            for record in records:
                values = {name: float(value) for name, value in record.items() if is_number(value) and name != "step"}
                for log in logs:
                    log(record["step"], values)

        def start() -> None:
            logs.extend(stack.enter_context(kinds(Tracker)[n]().open(out, folder / n)) for n in dict.fromkeys(names))
            write(out.metrics())

        def observe(record: Record) -> None:
            if logs:
                write([record])
            else:
                start()  # the file already holds `record`

        yield observe if names else None
        if names and not logs:
            with acquire_run_lock(out.path):
                start()


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class TensorBoard(Tracker):
    """TensorBoard event files."""

    name = package = "tensorboard"

    @contextmanager
    def open(self, out: RunDir, folder: Path) -> Iterator[Log]:
        """Write every metric as a TensorBoard scalar, rounded to float32, because TensorBoard's data server shows no float64
        scalars."""
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        with SummaryWriter(str(folder), flush_secs=5) as writer:

            def log(step: int, values: dict[str, float]) -> None:
                for name, value in values.items():
                    writer.add_scalar(name, value, step)

            # TensorBoard renders the text as Markdown, where indented lines are code.
            config = out.config_file.read_text(encoding="utf-8")
            writer.add_text("config", "".join(f"    {line}\n" for line in config.splitlines()))
            yield log


class WandB(Tracker):
    """Offline runs of Weights & Biases."""

    name = package = "wandb"

    @contextmanager
    def open(self, out: RunDir, folder: Path) -> Iterator[Log]:
        """Write an offline run of Weights & Biases. A resumed run keeps its id, so an upload replaces the run that was uploaded
        earlier."""
        import wandb

        # Without this variable, wandb sends telemetry over the network in offline mode too.
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        run_id = next((path.name.rpartition("-")[2] for path in folder.glob("offline-run-*")), None)
        shutil.rmtree(folder, ignore_errors=True)
        with wandb.init(
            mode="offline",
            dir=str(folder.parent),
            project=PROJECT,
            name=folder.parent.name,
            id=run_id,
            config=out.config(),
            settings=wandb.Settings(silent=True, console="off"),
        ) as run:
            yield lambda step, values: run.log(values, step=step)
