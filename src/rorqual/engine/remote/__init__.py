"""Clients of remote endpoints, with the interface of the local engine."""
