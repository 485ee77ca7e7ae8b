"""Training from text and dialogs: documents in, a checkpoint folder out."""

from llama.training.bpe import train_tokenizer
from llama.training.data import Document, dialog_document, text_document
from llama.training.evaluate import bits_per_byte
from llama.training.loop import TrainConfig, train

__all__ = [
    "Document",
    "TrainConfig",
    "bits_per_byte",
    "dialog_document",
    "text_document",
    "train",
    "train_tokenizer",
]
