"""Rorqual: the whole life of a DeepSeek-style reasoning model in one library."""

__version__ = "0.1.0"
