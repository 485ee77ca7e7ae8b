"""The kinds of tokenizer files, which `llama.tokenizer.Tokenizer` makes alike.

`vocabulary` reads tiktoken ranks and SentencePiece models, and a `tokenizer.json` through
`tokenizer_json`, which checks that it means the same as ranks.
"""

from llama.tokenization.tokenizer_json import write_tokenizer_json
from llama.tokenization.vocabulary import (
    SentencePieceVocabulary,
    TiktokenVocabulary,
    open_vocabulary,
    write_tiktoken_ranks,
)

__all__ = [
    "SentencePieceVocabulary",
    "TiktokenVocabulary",
    "open_vocabulary",
    "write_tiktoken_ranks",
    "write_tokenizer_json",
]
