"""Tensor operations: plain torch references that follow the papers, and backends tested to agree with them."""
