"""Inference: batched generation with a local model, or through a remote endpoint with the same interface."""

from rorqual.engine.config import EngineConfig
from rorqual.engine.deltas import Delta
from rorqual.engine.embeds import Embeds
from rorqual.engine.engine import Engine
from rorqual.engine.request import Completion, Generator, Request, SamplingParams

__all__ = ["Completion", "Delta", "Embeds", "Engine", "EngineConfig", "Generator", "Request", "SamplingParams"]
