"""The Llama text models: `Llama` to run one, and the pieces that it is made of."""

from llama.engine.sampling import SamplingParams
from llama.engine.scheduler import Engine, Sequence
from llama.generation import ChatPrediction, Chunk, CompletionPrediction, Llama
from llama.model import ModelArgs, Transformer
from llama.tokenizer import ChatFormat, Dialog, Message, Tokenizer

__all__ = [
    "ChatFormat",
    "ChatPrediction",
    "Chunk",
    "CompletionPrediction",
    "Dialog",
    "Engine",
    "Llama",
    "Message",
    "ModelArgs",
    "SamplingParams",
    "Sequence",
    "Tokenizer",
    "Transformer",
]
