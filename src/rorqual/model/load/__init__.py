"""Weights in and out: run directories, and one file per checkpoint family."""
