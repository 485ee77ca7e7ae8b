"""How well a model predicts a text that it has not seen."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from llama.model import Transformer
from llama.tokenizer import Tokenizer
from llama.training.data import collate, epoch, fit, text_document


def bits_per_byte(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], batch_tokens: int = 4096
) -> float:
    """Mean bits that `model` needs for a UTF-8 byte of `texts`, each alone after begin_of_text.

    The end token does not count. Lower is better, and unlike perplexity it can be compared between
    tokenizers. Texts longer than the model's context are scored in pieces. Raises ValueError where
    there is nothing to score.
    """
    size = sum(len(text.encode()) for text in texts)
    if not size:
        raise ValueError("no text to score: give at least one that is not empty")
    documents = [text_document(tokenizer, text) for text in texts]
    for document in documents:
        document.learn[-1] = False
    documents = fit(documents, model.params.max_seq_len)
    device = model.norm.weight.device
    nats = 0.0
    with torch.no_grad():
        for batch in epoch(documents, batch_tokens, seed=0):
            inputs, targets = collate([documents[i] for i in batch])
            logits = model(inputs.to(device))
            nats += F.cross_entropy(
                logits.flatten(0, 1), targets.to(device).flatten(), reduction="sum"
            ).item()
    return nats / math.log(2) / size
