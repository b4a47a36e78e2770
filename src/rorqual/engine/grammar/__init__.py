"""Constrained decoding: from a JSON schema, a regular expression or a list of choices to masks of allowed tokens."""
