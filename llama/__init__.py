"""The Llama text models: `Llama` to run one, and the pieces that it is made of."""

from llama.model import ModelArgs, Transformer
from llama.tokenizer import ChatFormat, Dialog, Message, Tokenizer

__all__ = ["ChatFormat", "Dialog", "Message", "ModelArgs", "Tokenizer", "Transformer"]
