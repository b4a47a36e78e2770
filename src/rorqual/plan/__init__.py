"""Estimate what a model costs before training or serving it: memory, time and money.

`hardware.py` and `price.py` contain tables with a source for each row. `memory.py`, `time.py` and `serve.py` compute
estimates from a model's configuration.
"""
