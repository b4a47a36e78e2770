"""Offline generation: answer all prompts in a file."""
