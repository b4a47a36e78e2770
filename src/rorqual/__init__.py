"""Rorqual: pretrain, fine-tune (SFT, DPO and GRPO), distil, evaluate and serve DeepSeek-style reasoning models.

The names below are the public interface (CONTRIBUTING.md documents its stability). Each name is imported on first use,
so `import rorqual` is fast and does not load torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "Completion": "rorqual.engine.request",
    "Engine": "rorqual.engine.engine",
    "EngineConfig": "rorqual.engine.config",
    "Message": "rorqual.core.records",
    "ModelConfig": "rorqual.model.config",
    "Problem": "rorqual.tasks.task",
    "Request": "rorqual.engine.request",
    "RorqualError": "rorqual.core.errors",
    "Run": "rorqual.train.run",
    "RunDir": "rorqual.core.records",
    "SamplingParams": "rorqual.core.sampling",
    "Task": "rorqual.tasks.task",
    "Verdict": "rorqual.tasks.task",
    "compare": "rorqual.evals.results",
    "distil": "rorqual.recipes.distil",
    "dpo": "rorqual.recipes.dpo",
    "evaluate": "rorqual.evals.evaluating",
    "fit": "rorqual.train.loop",
    "grpo": "rorqual.recipes.grpo",
    "load_plugins": "rorqual.core.registry",
    "load_task": "rorqual.tasks.find",
    "on_policy": "rorqual.recipes.distil",
    "pretrain": "rorqual.recipes.pretrain",
    "sft": "rorqual.recipes.sft",
    "table": "rorqual.evals.table",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'rorqual' has no attribute '{name}'")
    found = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
