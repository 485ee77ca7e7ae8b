"""The pages of the documentation: equal code and figures in both languages, links that work."""

import re
from pathlib import Path

import pytest

from llama.checkpoint.info import need, read_facts
from llama.storage.files import short_size

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "params/**/*.md")
    for page in ROOT.glob(pattern)
)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)


def test_both_readmes_have_the_same_code() -> None:
    english, chinese = (code_blocks(text_of(name)) for name in ("README.md", "README_zh.md"))
    assert len(english) > 5
    for ours, theirs in zip(english, chinese, strict=False):
        assert theirs == ours, "copy this block from README.md into README_zh.md"
    assert len(chinese) == len(english)


def test_both_readmes_have_the_same_figures() -> None:
    english = re.findall(r"([\d.]+) \u00d7", text_of("README.md"))
    assert len(english) > 5
    assert sorted(re.findall(r"([\d.]+) 倍", text_of("README_zh.md"))) == sorted(english)


def test_both_readmes_name_the_same_pages() -> None:
    english, chinese = (
        {*re.findall(r"\]\(([^)#:]+)\)", text_of(name))} for name in ("README.md", "README_zh.md")
    )
    assert len(english) > 5
    assert chinese - {"README.md", "docs/faq.zh.md"} == english - {"README_zh.md"}


FORMATS = ("float32", "bfloat16", "bf12", "int8", "int4")


def test_the_table_of_memory_is_what_llama_info_says() -> None:
    text = text_of("docs/faq.zh.md")
    assert f"| 模型 | {' | '.join(FORMATS)} |" in text
    rows = re.findall(r"^\| `(.+?)` \| (.+) \|$", text, re.MULTILINE)
    assert len(rows) > 5
    for name, cells in rows:
        facts = read_facts(str(ROOT / "params" / name))
        sizes = [short_size(need(facts, each, 1, 1, 4096).total) for each in FORMATS]
        assert cells == " | ".join(sizes), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings]
            assert heading in slugs, target
