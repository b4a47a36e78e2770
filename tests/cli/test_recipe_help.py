"""`rorqual train RECIPE --help` lists the keys of the recipe as its code has them, without torch."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from in_process import output_of
from rorqual.cli.recipe_keys import DEFAULTS, KEYS
from rorqual.recipes.find import RECIPES

TYPES = {str: "text", int: "integer", float: "number", dict: "mapping"}


def choices(kind: Any) -> list[str]:
    """The values of a Literal, of Literals inside it too."""
    return [value for one in get_args(kind) for value in (choices(one) if get_origin(one) is Literal else [str(one)])]


def type_text(kind: Any) -> str:
    """The type of an annotation in a word, or its choices."""
    if get_origin(kind) is Literal:
        return "|".join(choices(kind))
    if get_origin(kind) in (Annotated, Union, UnionType):
        return type_text(get_args(kind)[0])
    return TYPES[get_origin(kind) or kind]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_help_of_a_recipe_lists_its_keys_with_type_default_and_description(recipe: str) -> None:
    help_ = output_of("train", recipe, "--help")
    shown = "".join(help_.split())  # lines are broken in words too
    parameters = inspect.signature(RECIPES[recipe]).parameters
    hints = get_type_hints(RECIPES[recipe], include_extras=True)
    assert DEFAULTS.keys() == RECIPES.keys() and len(parameters) == len(DEFAULTS[recipe])
    assert f"Keys of the recipe {recipe}:" in help_ and help_.count("Keys of the recipe") == 1
    for name, parameter in parameters.items():
        key = "from" if name == "start" else name
        default = "" if parameter.default in (inspect.Parameter.empty, None) else parameter.default
        text = f"{default:g}" if isinstance(default, float) else str(default)
        assert DEFAULTS[recipe][key] == text and KEYS[key][0] == type_text(hints[name]), name
        assert f"{key}={text}{KEYS[key][1]}({KEYS[key][0]})".replace(" ", "") in shown


def test_without_a_recipe_the_help_says_how_to_see_the_keys() -> None:
    shown = output_of("train", "--help")
    assert "rorqual train RECIPE --help" in shown and "Keys of the recipe" not in shown
    assert "rorqual train grpo --help" in output_of("train", "grpo", code=2)
    assert "Keys of the recipe" not in output_of("distil", "--help")


def test_the_help_of_a_recipe_does_not_import_torch() -> None:
    code = "import sys; sys.argv[1:] = ['train', 'sft', '--help']\ntry:\n import rorqual.cli.main as m; m.main()\n"
    code += "finally:\n print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True)
    assert "Keys of the recipe sft" in done.stdout and done.stdout.endswith("False\n")
