"""Tensor operations: plain torch references that follow the papers, and faster backends. Tests compare the backends with the references."""
