"""Experiments that test published claims with several seeds, controls and a verdict rule. Each writes a JSON file and a page."""
