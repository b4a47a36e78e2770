"""Every argument of every recipe stands where it belongs in the run, and nowhere else."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from rorqual.core.errors import ConfigError
from rorqual.recipes import make_run
from rorqual.recipes.find import RECIPES

PLACES: dict[str, dict[str, tuple[str, str]]] = {
    "pretrain": {
        "steps": ("7", "steps"),
        "rows": ("5", "source.rows"),
        "row": ("72", "source.row"),
        "sequence_balance": ("0.25", "objectives.2.coefficient"),
        "seed": ("3", "seed"),
        "data": ("other.txt", "source.data"),
        "tokenizer": ("bpe:300", "start.tokenizer"),
        "size": ("medium", "model.hidden_size"),
    },
    "sft": {
        "steps": ("7", "steps"),
        "rows": ("5", "source.rows"),
        "row": ("72", "source.row"),
        "think": ("0.25", "source.think"),
        "options": ("{hard: 0.5}", "source.options"),
        "sequence_balance": ("0.25", "objectives.2.coefficient"),
        "lr": ("0.125", "optim.lr"),
        "seed": ("3", "seed"),
        "task": ("families:gcd", "source.task"),
        "data": ("other.jsonl", "source.data"),
        "tokenizer": ("bpe:300", "start.tokenizer"),
        "size": ("medium", "model.hidden_size"),
    },
    "grpo": {
        "task": ("families:gcd", "source.task"),
        "data": ("other.jsonl", "source.data"),
        "steps": ("7", "steps"),
        "problems": ("5", "source.problems"),
        "samples": ("6", "source.samples"),
        "max_tokens": ("11", "source.max_tokens"),
        "row": ("72", "source.row"),
        "temperature": ("0.5", "source.temperature"),
        "thinking": ("off", "source.thinking"),
        "variant": ("dr_grpo", "objectives.0.per"),
        "tis_cap": ("2.5", "objectives.0.tis_cap"),
        "beta": ("0.25", "objectives.0.beta"),
        "reference": ("another", "source.reference"),
        "options": ("{hard: 0.5}", "source.options"),
        "lr": ("0.125", "optim.lr"),
        "seed": ("3", "seed"),
        "dtype": ("bfloat16", "dtype"),
    },
    "dpo": {
        "data": ("other.jsonl", "source.data"),
        "beta": ("0.25", "objectives.0.beta"),
        "reference": ("another", "source.reference"),
        "steps": ("7", "steps"),
        "pairs": ("5", "source.pairs"),
        "row": ("72", "source.row"),
        "lr": ("0.125", "optim.lr"),
        "seed": ("3", "seed"),
    },
    "distil": {
        "data": ("other.parquet", "source.data"),
        "tokenizer": ("bpe:300", "start.tokenizer"),
        "size": ("medium", "model.hidden_size"),
        "objective": ("skewed", "objectives.0.divergence"),
        "alpha": ("0.25", "objectives.0.alpha"),
        "next_token": ("0.5", "objectives.1.coefficient"),
        "longer": ("skip", "source.longer"),
        "lr": ("0.125", "optim.lr"),
        "steps": ("7", "steps"),
        "rows": ("5", "source.rows"),
        "row": ("72", "source.row"),
        "seed": ("3", "seed"),
    },
    "on_policy": {
        "teacher": ("another", "source.teacher"),
        "task": ("families:gcd", "source.task"),
        "data": ("other.jsonl", "source.data"),
        "divergence": ("forward", "objectives.0.divergence"),
        "alpha": ("0.25", "objectives.0.alpha"),
        "top_k": ("9", "source.top_k"),
        "steps": ("7", "steps"),
        "problems": ("5", "source.problems"),
        "samples": ("6", "source.samples"),
        "max_tokens": ("11", "source.max_tokens"),
        "row": ("72", "source.row"),
        "temperature": ("0.5", "source.temperature"),
        "thinking": ("off", "source.thinking"),
        "options": ("{hard: 0.5}", "source.options"),
        "lr": ("0.125", "optim.lr"),
        "seed": ("3", "seed"),
        "dtype": ("bfloat16", "dtype"),
    },
}  # fmt: skip
BESIDE = {
    ("grpo", "temperature"): {"objectives.0.temperature": 0.5},
    ("grpo", "beta"): {"source.reference": "START"},
    ("grpo", "variant"): {
        "objectives.0.max_tokens": 96, "objectives.0.clip_high": 0.2, "source.std": False,
    },
    ("grpo", "dtype"): {"agreement.mean": 0.01, "agreement.most": 1.0, "agreement.gap": 0.05},
    ("on_policy", "dtype"): {"agreement.mean": 0.01, "agreement.most": 1.0, "agreement.gap": 0.05},
    ("on_policy", "temperature"): {"objectives.0.sampling_temperature": 0.5},
    ("pretrain", "row"): {"model.max_position_embeddings": 72},
    ("sft", "row"): {"model.max_position_embeddings": 72},
    ("distil", "row"): {"model.max_position_embeddings": 72},
}  # fmt: skip
"""Of arguments that stand in several places: the others."""
WHOLE = {("distil", "objective"), ("pretrain", "size"), ("sft", "size"), ("distil", "size"), ("sft", "lr"), ("distil", "lr"),
         ("pretrain", "tokenizer"), ("sft", "tokenizer"), ("distil", "tokenizer"), ("pretrain", "sequence_balance"),
         ("sft", "sequence_balance"), ("distil", "next_token")}  # fmt: skip
"""Those that change a whole object: what else they change is not listed here."""


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of a run by dotted name."""
    if isinstance(value, dict) and not prefix.endswith("options."):
        return {k: v for name, one in value.items() for k, v in flat(one, f"{prefix}{name}.").items()}
    if isinstance(value, list | tuple) and any(isinstance(one, dict) for one in value):
        return {k: v for number, one in enumerate(value) for k, v in flat(one, f"{prefix}{number}.").items()}
    return {prefix.removesuffix("."): value}


def least(recipe: str, argument: str, start: Path) -> dict[str, str]:
    """The least that makes the recipe, and with which the argument means something."""
    values = {
        "pretrain": {"data": "text.txt"},
        "sft": {"task": "families:add"},
        "grpo": {"task": "families:add", "from": str(start)},
        "dpo": {"data": "pairs.jsonl", "from": str(start)},
        "distil": {"data": "d.parquet", "size": "tiny"},
        "on_policy": {"task": "families:add", "from": str(start), "teacher": "teacher"},
    }[recipe]
    if recipe == "distil" and argument in ("alpha", "next_token"):
        values |= {"objective": "forward"}
    if (recipe, argument) == ("grpo", "reference"):
        values |= {"beta": "0.5"}
    return values


@pytest.mark.parametrize(
    ("recipe", "argument"), [(recipe, argument) for recipe, places in PLACES.items() for argument in places]
)
def test_an_argument_stands_in_its_place(recipe: str, argument: str, start: Path) -> None:
    raw, place = PLACES[recipe][argument]
    given = least(recipe, argument, start)
    before = flat(make_run(recipe, given).model_dump(mode="json"))
    after = flat(make_run(recipe, given | {argument: raw}).model_dump(mode="json"))
    changed = {name: value for name, value in after.items() if before.get(name) != value}
    wanted = {"medium": 384, "dr_grpo": "constant", "{hard: 0.5}": {"hard": 0.5}}.get(raw, raw)
    assert str(changed.pop(place)) == str(wanted)
    if (recipe, argument) not in WHOLE:
        beside = {k: str(start) if v == "START" else v for k, v in BESIDE.get((recipe, argument), {}).items()}
        assert changed == beside


def test_no_argument_is_forgotten_here() -> None:
    for name, recipe in RECIPES.items():
        assert set(inspect.signature(recipe).parameters) - {"start"} == set(PLACES[name])


@pytest.mark.parametrize("recipe", RECIPES)
def test_start_is_the_run_that_weights_come_from(recipe: str, start: Path) -> None:
    given = least(recipe, "start", start) | {"from": str(start)}
    given.pop("size", None)
    run = make_run(recipe, given)
    assert run.start.run == str(start) and run.model.hidden_size == 32 and run.recipe == recipe


def test_what_the_recipes_fix() -> None:
    """Rates, schedules and balance of each, as docs/LOG.md chose them."""
    supervised = {
        "lr": 0.012,
        "adamw.lr": 4e-3,
        "adamw.betas": [0.9, 0.98],
        "schedule.warmup": 50,
        "schedule.decay": 0.4,
        "clip": 1.0,
    }
    found = make_run("sft", {"task": "families:add"})
    optim = flat(found.optim.model_dump(mode="json"))
    assert {name: optim[name] for name in supervised} == supervised
    assert found.balance.gamma == 0.01 and [o.kind for o in found.objectives] == ["next_token", "mtp"]
    assert found.objectives[1].coefficient == 0.3
    text = make_run("pretrain", {"data": "text.txt"})
    assert (text.optim.lr, text.optim.adamw.lr, text.balance.gamma) == (0.02, 2e-3, 0.01)  # type: ignore[attr-defined]
    assert [o.kind for o in text.objectives] == ["next_token", "mtp"]
    assert make_run("distil", {"data": "d.parquet", "size": "tiny"}).objectives[0].kind == "next_token"


def test_reinforcement_is_nudged_and_leaves_the_bias_alone(start: Path) -> None:
    for recipe, lr in (("dpo", 1e-5), ("grpo", 1e-4), ("on_policy", 5e-4)):
        run = make_run(recipe, least(recipe, "start", start))
        schedule = run.optim.schedule
        assert (run.optim.kind, run.optim.lr, run.optim.betas) == ("adamw", lr, (0.9, 0.95))  # type: ignore[attr-defined]
        assert (schedule.warmup, schedule.decay, schedule.final) == (3, 0.5, 0.1) and run.balance.gamma == 0.0


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_wrong_argument_in_python_is_refused_by_name(recipe: str) -> None:
    makes = RECIPES[recipe]
    needed = {p.name: "x" for p in inspect.signature(makes).parameters.values() if p.default is inspect.Parameter.empty}
    for argument, value in (("steps", 0), ("steps", "many"), ("seed", -1), ("stepz", 3)):
        with pytest.raises(ConfigError, match=f"argument '{argument}'") as caught:
            makes(**needed | {argument: value})
        assert caught.value.where == recipe


def test_a_wrong_size_or_variant_names_the_right_ones() -> None:
    assert RECIPES["sft"](task="families:add", size="tiny").model.hidden_size == 32
    with pytest.raises(ConfigError, match="argument 'size': Input should be 'tiny', 'small'"):
        RECIPES["sft"](task="families:add", size="tinny")
    with pytest.raises(ConfigError, match="argument 'variant': Input should be"):
        RECIPES["grpo"]("families:add", "runs/none", variant="dapoo")
    with pytest.raises(ConfigError, match="argument 'samples': Input should be greater than or equal to 2"):
        RECIPES["grpo"]("families:add", "runs/none", samples=1)
    with pytest.raises(ConfigError, match="a vocabulary of 1,000,001 tokens is more than 1,000,000"):
        RECIPES["pretrain"]("text.txt", tokenizer="bpe:1000001")


@pytest.mark.parametrize("recipe", ["pretrain", "sft", "distil"])
def test_size_and_tokenizer_of_an_existing_model_are_refused(recipe: str, start: Path) -> None:
    for ignored in ({"size": "tiny"}, {"tokenizer": "bpe:300"}):
        with pytest.raises(ConfigError, match="have no effect on the model of an existing run"):
            RECIPES[recipe]("data.txt", start=str(start), **ignored)
    RECIPES[recipe]("data.txt", start=str(start))
