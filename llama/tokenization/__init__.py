"""The kinds of vocabulary files: tiktoken ranks, SentencePiece, `tokenizer.json`."""
