"""Experiments as recipes: seeds, controls, an equal-cost rule, a JSON and a page."""
