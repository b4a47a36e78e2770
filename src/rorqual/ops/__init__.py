"""Tensor operations: plain torch references that follow the papers, and faster backends. Tests compare both."""
