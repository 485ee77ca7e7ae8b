"""Chunks hold everything, are small enough, and follow sections, paragraphs and sentences."""

import random

from llama.retrieval.chunking import split_document
from llama.retrieval.parsing import Document, parse_markdown


def words(text: str) -> int:
    return len(text.split())


def test_chunks_hold_every_character_and_are_small_enough() -> None:
    rng = random.Random(1)
    for _ in range(200):
        parts = rng.choices(
            ["word ", "end. ", "\n\n", "\n", "# Title\n", "深い。", "なるほど", "x" * 50, "? "],
            k=120,
        )
        document = parse_markdown("".join(parts))
        size = rng.choice((16, 40, 100))
        chunks = split_document(document, len, size, size // 8)
        covered = set[int]()
        headings = {i for h in document.headings for i in range(h.start, h.start + 7)}
        for chunk in chunks:
            assert 0 < chunk.end - chunk.start <= size
            covered |= set(range(chunk.start, chunk.end))
        lost = {i for i, c in enumerate(document.text) if not c.isspace()} - covered
        assert lost <= headings  # of sections without a text, which are in headings below them


def test_sections_are_not_mixed_and_headings_are_joined() -> None:
    document = parse_markdown("intro\n# A\n## B\nbody\n# C\n## D\n")
    chunks = split_document(document, words, 100, 0)
    texts = [document.text[chunk.start : chunk.end] for chunk in chunks]
    assert list(zip(texts, (c.heading for c in chunks), strict=True)) == [
        ("intro", ""),
        ("## B\nbody", "A > B"),
        ("## D", "C > D"),
    ]


def test_a_chunk_ends_with_a_paragraph_where_it_is_half_full() -> None:
    document = Document("one two three.\n\nfour five six. seven eight nine.")
    chunks = split_document(document, words, 6, 0)
    assert [document.text[c.start : c.end] for c in chunks] == [
        "one two three.",
        "four five six. seven eight nine.",
    ]


def test_the_last_sentences_are_repeated() -> None:
    document = Document("a a. b b. c c. d d. e e.")
    chunks = split_document(document, words, 6, 2)
    assert [document.text[c.start : c.end] for c in chunks] == ["a a. b b. c c.", "c c. d d. e e."]


def test_chinese_sentences_need_no_spaces() -> None:
    document = Document("你好。再见。谢谢。")
    chunks = split_document(document, len, 6, 0)
    assert [document.text[c.start : c.end] for c in chunks] == ["你好。再见。", "谢谢。"]


def test_a_long_sentence_is_divided_between_words() -> None:
    document = Document("alpha beta gamma delta")
    chunks = split_document(document, len, 13, 0)
    assert [document.text[c.start : c.end] for c in chunks] == ["alpha beta", "gamma delta"]


def test_a_chunk_is_of_one_page() -> None:
    document = Document("one.\n\ntwo.", pages=(0, 6))
    chunks = split_document(document, words, 100, 10)
    assert [(document.text[c.start : c.end], c.page) for c in chunks] == [("one.", 1), ("two.", 2)]
