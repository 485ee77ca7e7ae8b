"""The Llama text models: `Llama` to run one, and what it is made of.

Names are imported at their first use, so that `llama --help` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama.args import ModelArgs
    from llama.engine import Engine, SamplingParams, Sequence
    from llama.errors import InputError
    from llama.generation import ChatPrediction, Chunk, CompletionPrediction, Llama
    from llama.model import Transformer
    from llama.tokenizer import ChatFormat, Dialog, Message, Tokenizer

__version__ = "0.1.0"

_MODULES = {
    "args": ["ModelArgs"],
    "engine": ["Engine", "SamplingParams", "Sequence"],
    "errors": ["InputError"],
    "generation": ["ChatPrediction", "Chunk", "CompletionPrediction", "Llama"],
    "model": ["Transformer"],
    "tokenizer": ["ChatFormat", "Dialog", "Message", "Tokenizer"],
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "ChatFormat",
    "ChatPrediction",
    "Chunk",
    "CompletionPrediction",
    "Dialog",
    "Engine",
    "InputError",
    "Llama",
    "Message",
    "ModelArgs",
    "SamplingParams",
    "Sequence",
    "Tokenizer",
    "Transformer",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"llama.{_MODULE_OF[name]}"), name)
