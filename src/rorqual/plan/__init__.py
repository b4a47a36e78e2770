"""Estimate what a model costs before training or serving it: memory, time and money.

`hardware.py` and `price.py` contain tables with a source for each row. The other modules compute estimates from a
model's `Account`.
"""
