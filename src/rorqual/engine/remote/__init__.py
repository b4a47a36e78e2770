"""Engines at a remote endpoint, with the interface of the local engine."""
