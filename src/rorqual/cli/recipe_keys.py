"""The keys of each recipe, for `rorqual train RECIPE --help`. A table, because recipes import torch, and `--help` must be fast.
`tests/cli/test_recipe_help.py` compares the table with the recipes."""

from __future__ import annotations

KEYS: dict[str, tuple[str, str]] = {
    "data": ("text", "file of training data, or the file or folder that the task reads"),
    "task": ("text", "task, such as families:add or ./mine.py:Class"),
    "options": ("mapping", "arguments of the task, such as {hard: 0.5}"),
    "from": ("text", "run whose weights, chat format and tokenizer the run starts with"),
    "teacher": ("text", "run that scores the student's samples"),
    "tokenizer": ("text", "for a new model: bytes, bpe:SIZE, or a tokenizer.json"),
    "size": ("tiny|small|medium|student|tiny-student", "size of a new model"),
    "steps": ("integer", "optimizer steps"),
    "rows": ("integer", "rows per batch"),
    "row": ("integer", "tokens per row; for a new model, also its context"),
    "think": ("number", "share of solutions with thinking"),
    "sequence_balance": ("number", "coefficient of V3's sequence-wise balance loss"),
    "objective": ("sequence|forward|reverse|skewed|skewed_reverse", "next-token loss on the samples, or a divergence"),
    "divergence": ("forward|reverse|skewed|skewed_reverse", "divergence of student and teacher"),
    "alpha": ("number", "share of the other distribution in a skewed divergence"),
    "next_token": ("number", "coefficient of the next-token loss beside a divergence"),
    "longer": ("error|skip", "what happens to samples that do not fit into a row"),
    "problems": ("integer", "problems per step"),
    "pairs": ("integer", "preference pairs per step"),
    "samples": ("integer", "samples per problem"),
    "max_tokens": ("integer", "maximum tokens of a sample"),
    "temperature": ("number", "sampling temperature"),
    "thinking": ("auto|on|off", "whether the model thinks"),
    "variant": ("none|dapo|dr_grpo|gspo|cispo|v32", "settings of a published GRPO variant"),
    "tis_cap": ("number", "cap of truncated importance sampling; 0: none"),
    "beta": ("number", "weight of the reference: of the KL term (default: the variant's), or in the DPO loss"),
    "reference": ("text", "run of the reference model; default: the run of from"),
    "top_k": ("integer", "likeliest tokens of the teacher that are compared; 0: the whole vocabulary"),
    "lr": ("number", "learning rate; 0: Muon and AdamW with the recipe's rates"),
    "seed": ("integer", "seed of weights, batches and samples"),
    "dtype": ("float32|bfloat16", "type of matrix products"),
}
"""The type and the description of each key."""

SHARED = {"steps": "40", "max_tokens": "96", "row": "128", "temperature": "1", "thinking": "auto", "options": ""}
SUPERVISED = {"from": "", "tokenizer": "bytes", "size": "small", "steps": "600", "rows": "32", "row": "128"}
DEFAULTS: dict[str, dict[str, str]] = {
    "pretrain": {"data": "", **SUPERVISED, "steps": "2000", "row": "64", "sequence_balance": "0", "seed": "0"},
    "sft": {
        "data": "", "task": "", "options": "", **SUPERVISED, "think": "1", "sequence_balance": "0", "lr": "0", "seed": "0",
    },
    "grpo": {
        "task": "", "from": "", "data": "", **SHARED, "problems": "32", "samples": "12", "variant": "none", "tis_cap": "0",
        "beta": "", "reference": "", "lr": "0.0001", "seed": "0", "dtype": "float32",
    },
    "dpo": {
        "data": "", "from": "", "beta": "0.1", "reference": "", "steps": "100", "pairs": "16", "row": "512", "lr": "1e-05", "seed": "0",
    },
    "distil": {
        "data": "", **SUPERVISED, "size": "student", "objective": "sequence", "alpha": "0.1", "next_token": "0",
        "longer": "error", "lr": "0", "seed": "0",
    },
    "on_policy": {
        "teacher": "", "from": "", "task": "", "data": "", **SHARED, "problems": "64", "samples": "4", "divergence": "reverse",
        "alpha": "0.1", "top_k": "0", "lr": "0.0005", "seed": "0", "dtype": "float32",
    },
}  # fmt: skip
"""The default of each key of each recipe, or "" if there is none."""


def recipe_rows(recipe: str) -> list[tuple[str, str]]:
    """Return `key=default`, and the description and type, of each key of a recipe."""
    return [(f"{key}={default}", "{1} ({0})".format(*KEYS[key])) for key, default in DEFAULTS[recipe].items()]
