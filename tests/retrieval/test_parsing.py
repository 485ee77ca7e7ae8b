"""Text, Markdown, HTML and PDF, and files that are none of them."""

from pathlib import Path

import pytest

from llama.errors import InputError
from llama.retrieval.parsing import Heading, parse_document, parse_html, parse_markdown


def pdf(*pages: str) -> bytes:
    """A PDF with a line of text on each page."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>"]
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>")
    objects.append("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 50 700 Td ({text}) Tj ET" if text else ""
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources "
            f"<< /Font << /F1 3 0 R >> >> /Contents {5 + 2 * i} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    data, offsets = b"%PDF-1.4\n", []
    for i, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += f"{i} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    return (
        data
        + (
            f"xref\n0 {len(offsets) + 1}\n0000000000 65535 f \n{table}trailer\n"
            f"<< /Size {len(offsets) + 1} /Root 1 0 R >>\nstartxref\n{len(data)}\n%%EOF\n"
        ).encode()
    )


def test_markdown_headings_stand_where_they_say_and_none_in_code() -> None:
    text = "intro\r\n# One #\n```sh\n# no heading\n```\n  ## Two\n#none\n####### none\n"
    document = parse_markdown(text)
    assert document.headings == (Heading(7, 1, "One"), Heading(text.index("  ##"), 2, "Two"))
    assert document.text == text


def test_html_shows_what_a_browser_shows() -> None:
    document = parse_html(
        "<!doctype html><title>no</title><style>p{}</style><h1> Opening\n <i>hours</i></h1>"
        "<p>The pool &amp; the\n  sauna <b>open</b>.</p><script>evil()</script>"
        "<ul><li>one<li>two</ul><pre>a\n  b</pre>end"
    )
    assert document.text == (
        "Opening hours\n\nThe pool & the sauna open.\n\none\ntwo\n\na\n  b\n\nend"
    )
    assert document.headings == (Heading(0, 1, "Opening hours"),)


def test_a_heading_of_html_begins_at_its_words() -> None:
    document = parse_html("<p>before</p><h2><br>Title</h2>after")
    (heading,) = document.headings
    assert document.text[heading.start :].startswith("Title")


def test_pages_of_a_pdf() -> None:
    pytest.importorskip("pypdf")
    document = parse_document(Path("a.pdf"), pdf("First page.", "Second page."))
    assert document.text == "First page.\n\nSecond page."
    assert [document.page(document.text.index(word)) for word in ("First", "Second")] == [1, 2]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"%PDF-1.4 and no more", "a.pdf: it is no PDF, or a broken one"),
        (pdf("First")[:300], "a.pdf: it is no PDF, or a broken one"),
        (pdf("", ""), "a.pdf: the PDF has no text"),
    ],
)
def test_broken_pdfs(data: bytes, reason: str) -> None:
    pytest.importorskip("pypdf")
    with pytest.raises(InputError, match=reason):
        parse_document(Path("a.pdf"), data)


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.txt", b"ELF\0\x01", "a.txt: it is no text .it has a zero byte at 3"),
        ("a.txt", b"caf\xe9", "a.txt: it is no utf-8 text .at byte 3"),
        ("a.txt", b" \n\t", "a.txt: it has no text"),
        ("a.html", b"<script>x</script>", "a.html: it has no text"),
        ("a.html", b"<meta charset=klingon>x", "a.html: there is no encoding 'klingon'"),
    ],
)
def test_files_that_are_no_text(name: str, data: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse_document(Path(name), data)


def test_byte_order_marks_and_declared_encodings() -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        assert parse_document(Path("a.txt"), "naïve 你好".encode(encoding)).text == "naïve 你好"
    page = '<meta charset="gb18030"><p>北京</p>'.encode("gb18030")
    assert parse_document(Path("a.htm"), page).text == "北京"
