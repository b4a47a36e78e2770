"""Recipes: functions that return a `Run`. `rorqual train NAME key=value` calls a recipe by name."""

from rorqual.recipes.find import make_run, recipe_names

__all__ = ["make_run", "recipe_names"]
