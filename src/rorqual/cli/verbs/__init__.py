"""The verbs of the command line, one per file. Functions import heavy modules, so that `rorqual --help` starts fast."""
