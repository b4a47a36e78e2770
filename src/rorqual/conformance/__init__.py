"""Checks of kinds of your own, in a test or as a command. Rorqual's own kinds pass the same checks.

In a test, call `check("attention", "mine", heads=4)`. The command is
`python -m rorqual.conformance plugins=./mine.py attention=mine heads=4`. The parts that can be checked are attention, ffn,
router, block, optimizer, objective, chat and task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rorqual.conformance import formats, models, training
from rorqual.conformance.models import ConformanceError
from rorqual.core.config import KindConfig, parse_config
from rorqual.core.errors import ConfigError, suggest_name
from rorqual.core.registry import find_kinds
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.model.attention import AttentionConfig, GQAConfig
from rorqual.model.block import BlockConfig
from rorqual.model.config import Stage
from rorqual.model.ffn import DenseConfig, FFNConfig, MoEConfig
from rorqual.model.ffn.router import RouterConfig
from rorqual.tasks.find import load_task
from rorqual.train.objectives import Objective
from rorqual.train.optim import OptimConfig

__all__ = ["ConformanceError", "check", "run_checks"]
CONFIGS: Mapping[str, type[KindConfig]] = {
    "attention": AttentionConfig,
    "ffn": FFNConfig,
    "router": RouterConfig,
    "block": BlockConfig,
    "optimizer": OptimConfig,
    "objective": Objective,
}
CHECKS: Mapping[str, Mapping[str, Callable[[Any], None]]] = {
    **dict.fromkeys(("attention", "ffn", "router", "block"), models.CHECKS),
    "optimizer": {"resume": training.resume},
    "objective": {"micro-batches": training.micro_batches},
    "chat": {"parsing": formats.parsing, "streaming": formats.streaming},
    "task": {"grading": formats.grading},
}
"""The checks of each part, by name."""


def check(part: str, kind: Any, **options: Any) -> None:
    """Check a kind of your own. Raises ConformanceError for the first contract that the kind breaks.

    `part` is attention, ffn, router, block, optimizer, objective, chat or task. `kind` is a name, or the config, chat format or
    task itself. `options` are the fields of the config, or the arguments of the task. The model that attention kinds and
    networks are checked in has a hidden size of 28. A chat format that is given by name is checked with a tokenizer of bytes
    and DeepSeek's special tokens.
    """
    for _, error in run_checks(part, kind, options):
        if error is not None:
            raise error


def run_checks(part: str, kind: Any, options: Mapping[str, Any]) -> Iterator[tuple[str, ConformanceError | None]]:
    """Run all checks of a kind (see `check`). Yield the name of each check, and its error or None."""
    if part not in CHECKS:
        raise ConfigError(f"'{part}' cannot be checked", where="conformance", remedy=suggest_name(part, CHECKS))
    subject = _subject(part, kind, options)
    for name, function in CHECKS[part].items():
        failed = None
        try:
            function(subject)
        except ConformanceError as error:
            shown = kind if isinstance(kind, str) else getattr(kind, "kind", None) or kind.name
            remedy = error.remedy or f"The contract: {' '.join(str(function.__doc__).split())}"
            failed = ConformanceError(error.what, where=f"{part} '{shown}', {name}", remedy=remedy)
        yield name, failed


def _subject(part: str, kind: Any, options: Mapping[str, Any]) -> Any:
    """Return the object that is checked: a stage of a model, a config, a chat format or a task."""
    if part in CONFIGS and isinstance(kind, str):
        if kind not in (known := find_kinds(CONFIGS[part], kind)):
            raise ConfigError(f"unknown kind '{kind}'", where=part, remedy=suggest_name(kind, known))
        kind = parse_config(known[kind], {"kind": kind, **options}, where=f"{part} '{kind}'")
    elif options and (part == "chat" or not isinstance(kind, str)):
        raise ConfigError(
            f"{part} takes no options here: {', '.join(options)}", where="conformance", remedy="Remove the options."
        )
    elif isinstance(kind, str):
        kind = chat_format(Tokenizer.byte_level(), kind) if part == "chat" else load_task(kind, options=options)
    if CHECKS[part] is not models.CHECKS:
        return kind
    if part == "router":
        part, kind = "ffn", MoEConfig(router=kind, moe_intermediate_size=8, n_shared_experts=1)
    gqa = GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    return Stage(**{"layers": 2, "attention": gqa, "ffn": DenseConfig(intermediate_size=20), part: kind})
