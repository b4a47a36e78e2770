"""Constrained decoding: compile JSON schemas, regular expressions, choices and tool calls to masks of allowed
tokens."""
