"""Tensor mathematics: plain-torch references that read like the papers, and backends proven equal to them."""
