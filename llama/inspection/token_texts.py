"""Token ids as text that a person can read: special tokens by name, parts of characters as bytes.

texts = TokenTexts(tokenizer)
texts[1792]                # <|begin_of_text|>
texts[262]                 # ' the'
texts[228]                 # <0xE4>, the first byte of a Chinese character
texts.lines(ids, width=80)
"""

import re
from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from llama.tokenizer import Tokenizer

_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")  # of surrogateescape
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


class TokenTexts:
    """What the tokens of a tokenizer look like, each on one line."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._names = {token: name for name, token in tokenizer.special_tokens.items()}

    def __getitem__(self, token: int) -> str:
        r"""A token's text in quotes, so that spaces are seen, or the name of a special token.

        Bytes that are no whole character are written as SentencePiece writes them, `<0xE4>`, and
        control characters as in Python, `\n`. Raises InputError for an id that does not exist.
        """
        if token in self._names:
            return self._names[token]
        self._tokenizer.decode([token])  # raises for an id that does not exist
        piece = self._tokenizer.vocabulary.piece(token)
        if isinstance(piece, bytes):
            piece = piece.decode("utf-8", "surrogateescape")
        shown = _with_bytes(visible(piece))
        if not _ESCAPED_BYTE.sub("", piece):
            return shown
        return f'"{shown}"' if "'" in shown and '"' not in shown else f"'{shown}'"

    def joined(self, ids: Sequence[int]) -> str:
        """The text of several tokens, where an incomplete character is written as its bytes."""
        pieces = [self._tokenizer.vocabulary.piece(token) for token in ids]
        data = [piece for piece in pieces if isinstance(piece, bytes)]
        if len(data) < len(pieces):  # SentencePiece, whose decoder drops the first space
            return self._tokenizer.decode(ids)
        return _with_bytes(b"".join(data).decode("utf-8", "surrogateescape"))

    def lines(self, ids: Sequence[int], width: int) -> Text:
        """Ids and their texts in lines of at most `width` cells; a message of a chat begins a line.

        The last byte of a character is followed by the character. A token that is wider than a
        line is not cut.
        """
        lines, used, decoder = Text(), 0, self._tokenizer.stream_decoder()
        begins = self._tokenizer.special_tokens.get("<|start_header_id|>")
        for i, token in enumerate(ids):
            shown, completed = self[token], decoder.feed(token)
            if shown.startswith("<0x") and completed not in ("", "\ufffd"):
                shown += f"={completed}"
            size = cell_len(f"{token} {shown}")
            if i and (token == begins or used + 2 + size > width):
                lines.append("\n")
                used = 0
            elif i:
                lines.append("  ")
                used += 2
            lines.append(f"{token} ", "dim").append(
                shown, "magenta" if token in self._names else ""
            )
            used += size
        return lines


def visible(text: str, keep: str = "") -> str:
    r"""Text whose control characters, besides those in `keep`, are escaped as in Python: `\x1b`.

    A terminal obeys control characters: a model's text could move its cursor, or hide other text.
    """

    def escaped(match: re.Match[str]) -> str:
        char = match[0]
        if char in keep:
            return char
        code = ord(char)
        return _SHORT.get(char) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")

    return _CONTROL.sub(escaped, text)


def _with_bytes(text: str) -> str:
    return _ESCAPED_BYTE.sub(lambda byte: f"<0x{ord(byte[0]) - 0xDC00:02X}>", text)
