"""Experiments that test published claims with several seeds, controls and a rule for the verdict. Each experiment writes a JSON
file and an HTML page."""
