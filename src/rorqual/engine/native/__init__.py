"""The `native` backend: an engine step in C."""
