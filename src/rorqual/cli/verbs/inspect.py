"""The command `rorqual inspect CONFIG|RUN`."""

from __future__ import annotations

from typing import Annotated

import typer

from rorqual.cli.machine import total_and_free_memory
from rorqual.cli.settings import Settings, check_device, parse_settings


def inspect(
    model: Annotated[str, typer.Argument(metavar="CONFIG|RUN", help="Published model, YAML or JSON file, or run.")],
    settings: Settings = None,
) -> None:
    """Show a model's parameters, FLOPs, KV cache and memory.

    Published models are, for example, deepseek-v3, deepseek-v2-lite and qwen3-8b.
    """
    from rorqual.cli.inspecting import CONVENTION, InspectSettings, align_columns, find_model, model_size_rows

    chosen = parse_settings(InspectSettings, settings)
    check_device(chosen.device)
    config = find_model(model)
    free = total_and_free_memory()[1] if chosen.device == "cpu" else 0
    print(align_columns([("model", model), *model_size_rows(config, chosen, free)]))
    print(f"\n{CONVENTION}")
