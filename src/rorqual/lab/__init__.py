"""Experiments that test published claims with several seeds, controls and a verdict rule. Each experiment writes a JSON
file and an HTML page."""
