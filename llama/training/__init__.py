"""Training from text and dialogs: documents in, a checkpoint folder out."""

from llama.tokenization.bpe import train_tokenizer
from llama.training.config import TrainConfig
from llama.training.documents import Document, dialog_document, find_sources, text_document
from llama.training.loop import train
from llama.training.tokenized import Documents, tokenize

__all__ = [
    "Document",
    "Documents",
    "TrainConfig",
    "dialog_document",
    "find_sources",
    "text_document",
    "tokenize",
    "train",
    "train_tokenizer",
]
