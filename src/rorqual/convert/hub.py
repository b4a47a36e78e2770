"""A checkpoint of the Hugging Face hub, where there is a network and `huggingface_hub` is installed."""

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
"""What is fetched: never code, never a pickle."""
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether this reads as ORG/NAME."""
    return _ID.fullmatch(name) is not None


def fetch(name: str) -> Path:
    """The folder, in the hub's cache, with the files of `name` (ORG/NAME) that an import reads; they are fetched if need be."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ConfigError(
            f"no folder '{name}' here, and without the package huggingface_hub nothing is fetched from the hub",
            where="import",
            remedy="Check the path, or `pip install huggingface_hub`.",
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(WANTED)))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"no folder '{name}' here, and the hub does not give it: {first}",
            where="import",
            remedy="Check the name and the network (a gated model wants HF_TOKEN), or fetch the files by other means.",
        ) from None
