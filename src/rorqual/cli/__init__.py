"""The command line: verbs, no logic. One file a verb; torch is imported only by the verb that needs it."""
