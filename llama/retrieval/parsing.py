"""Documents from files: plain text, Markdown, HTML and PDF, with their headings and pages.

    document = parse_document(Path("guide.md"), data)    # data is what the file holds
    document.text[h.start :]    # h, one of `document.headings`, says where its section begins

Of a text file and of Markdown, `text` is the file's own, so that offsets in it are offsets in the
file (in characters); of HTML and PDF it is what was extracted.
"""

import bisect
import codecs
import html.parser
import io
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from llama.errors import InputError

SUFFIXES = (".txt", ".md", ".markdown", ".html", ".htm", ".pdf")
_MARKDOWN = (".md", ".markdown")
_HTML = (".html", ".htm")

_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w-]+)", re.IGNORECASE)
_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)")


class Heading(NamedTuple):
    """A heading: where it begins in the text, its level (1 is the highest) and its words."""

    start: int
    level: int
    title: str


@dataclass(frozen=True)
class Document:
    """A text, its headings, and the offset at which each of its pages begins, if it has pages."""

    text: str
    headings: tuple[Heading, ...] = ()
    pages: tuple[int, ...] = ()

    def page(self, offset: int) -> int | None:
        """The number of the page, from 1, that has the character at `offset`."""
        return bisect.bisect_right(self.pages, offset) or None


def parse_document(path: Path, data: bytes) -> Document:
    """The document in a file's bytes, of the kind that its suffix says; of another, plain text.

    Raises InputError, naming the file, for one that is broken, encrypted, empty or no text.
    """
    suffix = path.suffix.lower()
    if suffix == ".pdf":
        document = _read_pdf(path, data)
    elif suffix in _HTML:
        document = parse_html(_decoded(path, data, _CHARSET.search(data[:2048])))
    else:
        text = _decoded(path, data)
        document = parse_markdown(text) if suffix in _MARKDOWN else Document(text)
    if not document.text.strip():
        raise InputError(f"{path}: it has no text")
    return document


def _decoded(path: Path, data: bytes, charset: re.Match[bytes] | None = None) -> str:
    encoding = next((name for bom, name in _BOMS.items() if data.startswith(bom)), None)
    if encoding is None and b"\0" in data:
        raise InputError(f"{path}: it is no text (it has a zero byte at {data.index(0)})")
    declared = charset[1].decode() if charset else "utf-8"
    try:
        return data.decode(encoding or declared)
    except LookupError:
        raise InputError(f"{path}: there is no encoding {declared!r}, which it names") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: it is no {error.encoding} text (at byte {error.start}); a text in another "
            "encoding has to be converted: iconv -f GB18030 -t UTF-8"
        ) from None


def parse_markdown(text: str) -> Document:
    """A text whose lines that begin with # are headings, but for those in fenced code."""
    headings = []
    fence, start = "", 0
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence):
                fence = ""
        elif mark:
            fence = mark[1]
        elif (found := _HEADING.match(line.rstrip("\r\n"))) and found[2]:
            headings.append(Heading(start, len(found[1]), found[2]))
        start += len(line)
    return Document(text, tuple(headings))


def parse_html(markup: str) -> Document:
    """The visible text of a page: blocks on lines of their own, white space as a browser shows."""
    parser = _HtmlText()
    parser.feed(markup)
    parser.close()
    return parser.document()


class _HtmlText(html.parser.HTMLParser):
    _HIDDEN = ("script", "style", "template", "noscript", "title", "svg")
    _HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
    _LINES = ("br", "li", "tr", "dt", "dd", "option")
    _BLOCKS = (
        *("address", "article", "aside", "blockquote", "body", "dl", "div", "fieldset", "figure"),
        *("footer", "form", "header", "hr", "main", "nav", "ol", "p", "pre", "section", "table"),
        *("ul", *_HEADINGS),
    )

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[str] = []
        self._length = 0
        self._gap = ""  # white space before the next word
        self._hidden = 0
        self._pre = 0
        self._heading: tuple[int, int] | None = None  # the level, and where its first part is
        self._headings: list[tuple[int, int, str]] = []

    def document(self) -> Document:
        headings = (Heading(start, level, title) for start, level, title in self._headings if title)
        return Document("".join(self._parts), tuple(headings))

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in self._HIDDEN
        self._pre += tag == "pre"
        self._break(tag)
        if tag in self._HEADINGS:
            self._heading = (int(tag[1]), len(self._parts))

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in self._HIDDEN))
        self._pre = max(0, self._pre - (tag == "pre"))
        if tag in self._HEADINGS and self._heading is not None:
            level, first = self._heading
            title = "".join(self._parts[first:])
            start = self._length - len(title.lstrip())
            self._headings.append((start, level, " ".join(title.split())))
            self._heading = None
        self._break(tag)

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if self._pre:
            self._write(data)
            return
        words = data.split()
        if not words:
            self._gap = self._gap or " " * bool(data)
            return
        if data[0].isspace():
            self._gap = self._gap or " "
        self._write(" ".join(words))
        self._gap = " " * data[-1].isspace()

    def _break(self, tag: str) -> None:
        lines = 2 if tag in self._BLOCKS else 1 if tag in self._LINES else 0
        if lines > self._gap.count("\n"):
            self._gap = "\n" * lines
        elif tag in ("td", "th"):
            self._gap = self._gap or " "

    def _write(self, text: str) -> None:
        text = (self._gap if self._length else "") + text
        self._gap = ""
        self._parts.append(text)
        self._length += len(text)


def _read_pdf(path: Path, data: bytes) -> Document:
    try:
        import pypdf
    except ImportError:
        raise InputError(f"{path}: PDF needs pypdf: pip install pypdf") from None
    if not (logger := logging.getLogger("pypdf")).handlers:
        logger.addHandler(logging.NullHandler())  # else its warnings go to standard error
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise InputError(f"{path}: the PDF needs a password; save a copy without one")
        texts = [page.extract_text() for page in reader.pages]
    except InputError:
        raise
    except Exception as error:  # pypdf has no bound on what a broken file makes it raise
        raise InputError(f"{path}: it is no PDF, or a broken one: {error}") from error
    if not any(text.strip() for text in texts):
        raise InputError(f"{path}: the PDF has no text (scanned pages need OCR first)")
    pages, start = [], 0
    for text in texts:
        pages.append(start)
        start += len(text) + 2
    # Half a surrogate pair, which broken fonts give, can't be stored.
    whole = "\n\n".join(texts).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if len(whole) != start - 2:
        whole = "\n\n".join(texts).encode(errors="replace").decode()
    return Document(whole, pages=tuple(pages))
