"""Download of checkpoints from the Hugging Face hub, with the package `huggingface_hub`."""

from __future__ import annotations

import re
from pathlib import Path

from rorqual.core.errors import CheckpointError, ConfigError

WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
)
"""Name patterns of the files to download from the hub. Code and pickles are never downloaded."""
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Return whether `name` has the form ORG/NAME of a hub repository."""
    return _ID.fullmatch(name) is not None


def download_repository(name: str) -> Path:
    """Download the files that an import needs from the hub repository `name` (ORG/NAME).

    Return the folder of the downloaded files in the hub cache. Files in the hub cache are not downloaded again. Raises
    ConfigError if `huggingface_hub` is not installed, and CheckpointError if the download fails.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ConfigError(
            f"no local folder '{name}', and a download from the hub needs the package huggingface_hub",
            where="import",
            remedy="Check the path, or `pip install huggingface_hub`.",
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"no local folder '{name}', and the download from the hub failed: {reason}",
            where="import",
            remedy="Check the name and the network (a gated model needs HF_TOKEN), or download the files yourself.",
        ) from None
