"""Relevance from attention: how much a query's tokens look at each passage's.

In-context reranking (Chen et al., 2024, arXiv 2410.02642): all passages stand in one prompt, the
query after them. A passage's score is the attention that its tokens get from the query's, over
heads and layers, less what they get from the query "N/A", which has no content. So two forward
passes rank all passages.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from llama import distributed
from llama.errors import InputError
from llama.model import Transformer, TransformerBlock, apply_rotary_emb, freqs_cis_at
from llama.tokenizer import Tokenizer

CONTENT_FREE_QUERY = "N/A"
_INSTRUCTION = "Here are some passages:"
_QUESTION = "Please find the passages that are relevant to this question."


@torch.no_grad()
def attention_to_context(
    model: Transformer, tokens: Sequence[int], num_queries: int, layers: Sequence[int] | None = None
) -> Tensor:
    """The attention that each token gets from the last `num_queries` tokens, float32 (tokens,).

    It is the mean over those tokens and the sum over all heads of `layers` (all if None). The
    weights are computed from each layer's input, beside the model's own attention, which keeps
    none: in memory they take (heads, num_queries, tokens) of one layer.
    """
    if distributed.model_parallel_size() > 1:
        raise InputError("attention is read in one process; run without torchrun")
    args, device = model.params, model.norm.weight.device
    chosen = range(args.n_layers) if layers is None else layers
    ids = torch.tensor([list(tokens)], device=device)
    size = ids.shape[1]
    positions = torch.arange(size, device=device)
    freqs_cis = freqs_cis_at(positions, model.freqs.to(device))
    is_later = positions > positions[size - num_queries :, None]  # (queries, tokens)
    total = torch.zeros(size, device=device)
    h = model.tok_embeddings(ids)
    for i in range(args.n_layers):
        if i in chosen:
            block = model.layers[i]
            assert isinstance(block, TransformerBlock)
            normed = block.attention_norm(h)
            queries = block.attention.wq(normed).view(1, size, -1, args.head_dim)
            keys = block.attention.wk(normed).view(1, size, -1, args.head_dim)
            queries, keys = apply_rotary_emb(queries, keys, freqs_cis)
            queries = queries[0, size - num_queries :].float().transpose(0, 1)
            keys = keys[0].float().transpose(0, 1)
            queries = queries.unflatten(0, (keys.shape[0], -1))  # (kv_heads, group, queries, dim)
            scores = queries @ keys.unsqueeze(1).mT / math.sqrt(args.head_dim)
            weights = scores.masked_fill(is_later, -math.inf).softmax(-1)
            total += weights.sum((0, 1)).mean(0)
        h = model.hidden(ids, layers=range(i, i + 1), h=h)
    return total


def attention_scores(
    model: Transformer,
    tokenizer: Tokenizer,
    query: str,
    passages: Sequence[str],
    max_tokens: int,
    layers: Sequence[int] | None = None,
) -> list[float]:
    """A score for each passage; they compare passages for one query.

    Passages that do not fit into `max_tokens` together are read in groups of about equal size.
    Raises InputError where a single one does not fit.
    """
    before = tokenizer.encode(f"{_INSTRUCTION}\n\n", bos=True)
    bodies = [tokenizer.encode(f"[{i + 1}] {text}\n\n") for i, text in enumerate(passages)]
    question = tokenizer.encode(f"{_QUESTION}\nQuestion:")
    queries = [tokenizer.encode(f" {text}") for text in (query, CONTENT_FREE_QUERY)]
    room = max_tokens - len(before) - len(question) - max(map(len, queries))
    scores: list[float] = []
    for group in _groups([len(body) for body in bodies], room):
        context = before + [token for i in group for token in bodies[i]]
        found, baseline = (
            attention_to_context(model, context + question + ids, len(ids), layers)
            for ids in queries
        )
        ends = torch.tensor([len(bodies[i]) for i in group]).cumsum(0) + len(before)
        for i, end in zip(group, ends.tolist(), strict=True):
            here = slice(end - len(bodies[i]), end)
            gain = found[here] - baseline[here]
            # Tokens that lose far more than others, such as separators, say nothing of relevance.
            kept = gain[gain >= gain.mean() - 2 * gain.std(correction=0)]
            scores.append(float(kept.sum()))
    return scores


def _groups(sizes: Sequence[int], room: int) -> list[range]:
    """Neighbours that fit into `room` together, in as few groups as there are, of like numbers."""
    if max(sizes, default=0) > room:
        raise InputError(
            f"a passage of {max(sizes)} tokens does not fit into the context beside the question, "
            f"where {max(room, 0)} are left"
        )
    for count in range(1, len(sizes) + 1):
        bounds = [round(i * len(sizes) / count) for i in range(count + 1)]
        groups = [range(*pair) for pair in pairwise(bounds)]
        if all(sum(sizes[i] for i in group) <= room for group in groups):
            return groups
    return []
