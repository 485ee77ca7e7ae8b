"""Continuous batching: `Sequence` is a request, `Engine` runs many of them on one model.

The files follow each other: `sampling_params` (settings), `sampling` (the draw), `request` (a
request and its answer), `decoding` (steps of several requests), `model_runner` (prompts, too),
`scheduler` (who runs when), `engine` (the loop, for any thread), `async_engine` (for coroutines).
`embedding` and `reranking` make requests that only read their prompt.
"""

from llama.engine.async_engine import AsyncEngine
from llama.engine.embedding import embedding_sequences
from llama.engine.engine import Engine
from llama.engine.grammar import Grammar
from llama.engine.prefix_store import PrefixStore
from llama.engine.request import FinishReason, Sequence
from llama.engine.reranking import query_likelihood, query_likelihood_sequences
from llama.engine.sampling_params import SamplingParams
from llama.engine.stats import EngineStats

__all__ = [
    "AsyncEngine",
    "Engine",
    "EngineStats",
    "FinishReason",
    "Grammar",
    "PrefixStore",
    "SamplingParams",
    "Sequence",
    "embedding_sequences",
    "query_likelihood",
    "query_likelihood_sequences",
]
