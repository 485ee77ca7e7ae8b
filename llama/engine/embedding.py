"""Text embeddings: the mean of a language model's hidden states, as a vector of length 1.

    sequences = embedding_sequences(tokenizer, ["a cat", "a dog"])
    ...                                            # run them, by an `Engine` or an `AsyncEngine`
    torch.stack([sequence.embedding for sequence in sequences])     # (2, dim)

A token's state knows only the tokens before it. So the text is read twice, and the states of its
second occurrence are averaged, each of which knows the whole text: echo embeddings (Springer et
al., 2024, arXiv 2402.15449), which without training are clearly better than those of one reading
and take twice its time. Neither is as good as a model that was trained for it.
"""

from collections.abc import Iterable

from llama.engine.request import Sequence
from llama.errors import InputError, InputTypeError
from llama.tokenizer import Tokenizer


def embedding_sequences(
    tokenizer: Tokenizer, texts: Iterable[str], *, echo: bool = True, adapter: str | None = None
) -> list[Sequence]:
    """A request for each text, which gets an `embedding`, the mean over the text's tokens.

    With `echo` over those of its second occurrence. Raises InputError or InputTypeError, naming the
    text, for one that is empty or no string.
    """
    sequences = []
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputTypeError(f"texts[{i}] must be a string, got {text!r:.60}")
        if not text:
            raise InputError(f"texts[{i}] is empty; it needs at least one character")
        before = [tokenizer.bos_id]
        if echo:
            before = tokenizer.encode(f"Rewrite the text: {text}\nThe rewritten text:", bos=True)
        after = encode_after_space(tokenizer, text) if echo else tokenizer.encode(text)
        sequences.append(Sequence(before + after, 0, pool_from=len(before), adapter=adapter))
    return sequences


def encode_after_space(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text that goes on after a space, which SentencePiece puts there itself."""
    return tokenizer.encode(text if tokenizer.is_sentencepiece else f" {text}")
