"""The commands (verbs) of `rorqual`, one per file.

Heavy modules are imported inside functions, so that `rorqual --help` starts fast.
"""
