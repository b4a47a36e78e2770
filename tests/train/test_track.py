"""Trackers hold what `metrics.jsonl` holds, step by step, and change nothing else of a run."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
from little import records, sft_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from in_process import output_of
from rorqual.core.records import RunDir
from rorqual.train.loop import fit
from rorqual.train.run import Run
from rorqual.train.state import CLOCK_FIELDS
from rorqual.train.track import open_trackers

Series = dict[str, list[tuple[int, float]]]
WEIGHTS, OPTIM = "model.safetensors", "optim.safetensors"


def tracked(run: Run, out: Path) -> None:
    with open_trackers(["tensorboard"], RunDir(out)) as observe:
        fit(run, RunDir(out), quiet=True, observe=observe)


def shown(out: Path) -> Series:
    """What TensorBoard's own reader finds: (step, value) of each name, in the order of the file."""
    [file] = (out / "tensorboard").iterdir()
    events = EventAccumulator(str(file), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def recorded(out: Path) -> Series:
    """The numbers of `metrics.jsonl`, in the precision of TensorBoard."""
    series: Series = {}
    for line in RunDir(out).metrics_file.read_text(encoding="utf-8").splitlines():
        record: dict[str, Any] = json.loads(line)
        step = record.pop("step")
        for name, value in record.items():
            if type(value) in (int, float):
                series.setdefault(name, []).append((step, float(np.float32(value))))
    return series


def timeless(series: Series) -> Series:
    return {name: values for name, values in series.items() if name not in CLOCK_FIELDS}


def test_tensorboard_reads_every_number_and_the_config(tmp_path: Path) -> None:
    tracked(sft_run(3), tmp_path / "run")
    found = shown(tmp_path / "run")
    assert found == recorded(tmp_path / "run")
    assert {"loss", "grad_norm", "tokens", "flops", *CLOCK_FIELDS} <= set(found) and "recipe" not in found
    assert [step for step, _ in found["loss"]] == [1, 2, 3] and "step" not in found
    [text] = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Tensors("config/text_summary")
    config = (tmp_path / "run" / "run.yaml").read_text(encoding="utf-8")
    [shown_config] = text.tensor_proto.string_val
    assert [line[4:] for line in shown_config.decode().splitlines()] == config.splitlines()


def test_a_tracker_that_is_added_later_gets_the_earlier_steps(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(sft_run(2), RunDir(out), quiet=True)
    tracked(sft_run(4), out)  # extends the run
    found = shown(out)
    assert found == recorded(out) and [step for step, _ in found["loss"]] == [1, 2, 3, 4]
    assert found["from_step"] == [(3, 2.0)], "a field of one step is shown at this step only"
    shutil.rmtree(out / "tensorboard")
    tracked(sft_run(4), out)  # a finished run
    assert shown(out) == found


def child(run: Run, out: Path, last: int) -> None:
    """Train with a tracker, and be killed right after step `last`."""
    with open_trackers(["tensorboard"], RunDir(out)) as observe:

        def killed(record: dict[str, Any]) -> None:
            assert observe is not None
            observe(record)
            if record["step"] == last:
                os.kill(os.getpid(), signal.SIGKILL)

        fit(run, RunDir(out), quiet=True, observe=killed)


def test_a_killed_and_resumed_run_shows_what_a_straight_one_shows(tmp_path: Path) -> None:
    straight, out = tmp_path / "straight", tmp_path / "killed"
    tracked(sft_run(8), straight)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rorqual.train.loop", "torch._dynamo"])
    for last in (5, 7):
        process = context.Process(target=child, args=(sft_run(8), out, last))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        shutil.rmtree(out / f"step-{last - 1:06d}")  # the resumed run repeats steps that the tracker has written
        assert RunDir(out).steps() == [last - 2] and len(records(out)) == last
    tracked(sft_run(8), out)
    assert records(out) == records(straight)
    assert shown(out) == recorded(out)
    assert timeless(shown(out)) == timeless(shown(straight))


def test_track_is_no_setting_of_the_run(tmp_path: Path) -> None:
    """An unknown name is refused before anything is written; a known one changes neither the config nor a bit of the result."""
    words = ["train", "sft", "task=families:add", "size=tiny", "steps=2", "rows=2", "threads=1", "quiet=true"]
    typo, out, plain = tmp_path / "typo", tmp_path / "tracked", tmp_path / "plain"
    refused = " ".join(output_of(*words, f"out={typo}", "track=tensorboard,tensorbord", code=2).split())
    assert "track: unknown tracker 'tensorbord'" in refused
    assert "Give one or several of tensorboard, wandb, separated by commas." in refused
    assert not typo.exists()
    for folder, more in ((out, ["track=tensorboard"]), (plain, [])):
        assert output_of(*words, f"out={folder}", *more) == ""
    assert shown(out) == recorded(out) and not (plain / "tensorboard").exists()
    assert (out / "run.yaml").read_bytes() == (plain / "run.yaml").read_bytes()
    for name in (WEIGHTS, OPTIM):
        assert (out / "step-000002" / name).read_bytes() == (plain / "step-000002" / name).read_bytes()
