"""One file per verb. Verbs import heavy modules inside their functions, so that `rorqual --help` starts fast."""
