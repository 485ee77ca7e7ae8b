"""Continuous batching: requests, scheduler, sampling, CUDA graphs."""

from llama.engine.sampling import SamplingParams
from llama.engine.scheduler import Engine, FinishReason, Sequence

__all__ = ["Engine", "FinishReason", "SamplingParams", "Sequence"]
