"""What a model costs before anybody pays: memory, time and money, to train it and to serve it.

`hardware.py` and `price.py` are the tables, each row with its source; the rest is arithmetic on the account of a model.
"""
