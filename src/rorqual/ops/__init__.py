"""Tensor operations: reference implementations in plain torch that follow the papers, and faster backends.

Tests compare the backends with the reference implementations.
"""
