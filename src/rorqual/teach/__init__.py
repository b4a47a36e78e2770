"""Teach a small model the task of a file of examples: check the file, train, measure and report."""
