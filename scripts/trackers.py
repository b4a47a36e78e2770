"""Kill and resume runs with each tracker, and compare what its own files hold with `metrics.jsonl`.

    pip install "rorqual[tensorboard,wandb]"
    python scripts/trackers.py --kills 3

Tests use TensorBoard only, because the other packages need 100 MB. For each tracker, a run is killed (SIGKILL) at random
steps, resumed, finished, and finished again. Every number, the config and the result of the run must be equal to those of
a run without trackers. The exit code is 0 if all are equal.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rorqual.core.records import RunDir
from rorqual.train.state import CLOCK_FIELDS

STEPS = 60
WORDS = ["train", "sft", "task=families:add", "size=tiny", "rows=2", "threads=1", f"steps={STEPS}", "save_seconds=0.2"]
Steps = list[tuple[int, dict[str, float]]]


def command(out: Path, names: str = "") -> list[str]:
    return [sys.executable, "-m", "rorqual", *WORDS, f"out={out}", "quiet=true", f"track={names}"]


def lines(out: Path) -> int:
    file = RunDir(out).metrics_file
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def kill(out: Path, names: str, rng: random.Random) -> bool:
    """Start the run and kill it some steps later. Return whether it was still running."""
    process = subprocess.Popen(command(out, names))
    wanted = lines(out) + rng.randrange(3, STEPS // 4)
    while process.poll() is None and lines(out) != wanted:
        time.sleep(0.002)
    process.kill()
    return process.wait() == -9


def tensorboard(folder: Path) -> tuple[Steps, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [file] = folder.iterdir()
    events = EventAccumulator(str(file), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
    steps: dict[int, dict[str, float]] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            assert name not in steps.setdefault(event.step, {}), f"{name} of step {event.step} twice"
            steps[event.step][name] = event.value
    [text] = events.Tensors("config")
    [config] = text.tensor_proto.string_val
    return list(steps.items()), config.decode().replace("\n    ", "\n")[4:]


def wandb_records(file: Path) -> Iterator[Any]:
    """Read a .wandb file: seven bytes, then protobuf records in the log format of LevelDB."""
    from wandb.proto import wandb_internal_pb2

    data, at, body = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:  # a header never crosses the border of a block
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        body += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(body)
            yield record
            body = b""


def wandb(folder: Path) -> tuple[Steps, Any]:
    [file] = folder.glob("offline-run-*/*.wandb")
    steps: Steps = []
    config: dict[str, Any] = {}
    for record in wandb_records(file):
        for item in record.run.config.update:
            config[item.key] = json.loads(item.value_json)
        if record.HasField("history"):
            items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            steps.append((items.pop("_step"), {k: v for k, v in items.items() if k not in ("_timestamp", "_runtime")}))
    config.pop("_wandb", None)
    return steps, config


READERS = {"tensorboard": tensorboard, "wandb": wandb}


def as_recorded(out: Path, name: str) -> Steps:
    """Return the numbers of `metrics.jsonl`. TensorBoard rounds them to float32."""
    steps = []
    for record in RunDir(out).metrics():
        numbers = {k: float(v) for k, v in record.items() if k not in ("step", "recipe")}
        if name == "tensorboard":
            numbers = {k: struct.unpack("f", struct.pack("f", v))[0] for k, v in numbers.items()}
        steps.append((record["step"], numbers))
    return steps


def timeless(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in CLOCK_FIELDS} for record in RunDir(out).metrics()]


def check(out: Path, name: str, plain: Path) -> None:
    steps, config = READERS[name](out / name)
    assert steps == as_recorded(out, name), f"{name}: steps differ from metrics.jsonl"
    assert [step for step, _ in steps] == list(range(1, STEPS + 1)), f"{name}: steps are missing or repeated"
    text = (out / "run.yaml").read_text(encoding="utf-8")
    assert config == (text if name == "tensorboard" else RunDir(out).config()), f"{name}: the config differs"
    assert text == (plain / "run.yaml").read_text(encoding="utf-8"), f"{name}: run.yaml differs"
    assert timeless(out) == timeless(plain), f"{name}: metrics differ"
    for file in ("model.safetensors", "optim.safetensors"):
        one, other = (RunDir(folder).checkpoint() / file for folder in (out, plain))
        assert one.read_bytes() == other.read_bytes(), f"{name}: {file} differs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--trackers", default=",".join(READERS))
    arguments = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain"
        subprocess.run(command(plain), check=True)
        for names in dict.fromkeys([*arguments.trackers.split(","), arguments.trackers]):
            out = Path(folder) / names
            kills = sum(kill(out, names, rng) for _ in range(arguments.kills))
            for _ in range(2):  # the second command finds a finished run, and writes the trackers' files again
                subprocess.run(command(out, names), check=True)
                for name in names.split(","):
                    check(out, name, plain)
            print(f"{names}: {kills} kills, {STEPS} steps, all equal")


if __name__ == "__main__":
    main()
