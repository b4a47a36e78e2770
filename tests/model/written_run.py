"""A run directory with one checkpoint, as the tests of loading need it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from rorqual.core.config import to_yaml
from rorqual.core.records import RunDir, write_json
from rorqual.model import ModelConfig


def write_run(
    folder: Path,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    files: Mapping[str, bytes] | None = None,
    step: int = 1,
) -> RunDir:
    """The run in `folder`; its only checkpoint holds `files`, or else the weights `state`."""
    run = RunDir(folder)
    place = run.step_dir(step)
    place.mkdir(parents=True)
    text = "\n".join(f"  {line}" for line in to_yaml(config).splitlines())
    run.config_file.write_text(f"model:\n{text}\n", encoding="utf-8")
    files = files or {"model.safetensors": save(dict(state))}
    for name, data in files.items():
        (place / name).write_bytes(data)
    write_json(place / "whole.json", {name: len(data) for name, data in files.items()})
    return run
