"""Experiments that test published claims: several seeds, controls, a rule for the verdict, a JSON result and a page."""
