"""What reaches the terminal, from which rank."""

import io
import sys

import pytest
import tqdm

from llama import console


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream, seconds, total=1_000_000, **settings):
    """What a bar writes of work that takes so long; the clock is turned, nobody waits."""
    monkeypatch.setattr(sys, "stderr", stream)
    now = [1000.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    with console.progress(total, "weights.pth", **settings) as bar:
        for _ in range(10):
            now[0] += seconds / 10
            bar.update(total // 20)
    return stream.getvalue()


@pytest.fixture
def rank(monkeypatch):
    """Says which rank this process is, without process groups."""
    monkeypatch.setattr(console.dist, "is_initialized", lambda: False)
    return lambda number: monkeypatch.setenv("RANK", str(number))


def test_a_bar_on_a_terminal(monkeypatch, capsys, rank):
    rank(0)
    text = shown(monkeypatch, Terminal(), seconds=5)
    assert "weights.pth:  50%" in text
    assert "500k/1.00M" in text
    assert text.endswith("\r")  # it takes itself away
    assert capsys.readouterr().out == ""


def test_no_bar_for_short_work(monkeypatch, rank):
    rank(0)
    assert shown(monkeypatch, Terminal(), seconds=0.9) == ""


def test_no_bar_where_nobody_looks(monkeypatch, rank):
    rank(0)
    assert shown(monkeypatch, io.StringIO(), seconds=5) == ""
    assert shown(monkeypatch, io.StringIO(), seconds=5, any_rank=True) == ""


def test_one_process_draws_unless_told_otherwise(monkeypatch, rank):
    rank(1)
    assert shown(monkeypatch, Terminal(), seconds=5) == ""
    assert "weights.pth" in shown(monkeypatch, Terminal(), seconds=5, any_rank=True)


def test_what_was_done_before_counts_for_the_share_and_not_for_the_speed(monkeypatch, rank):
    rank(0)
    text = shown(monkeypatch, Terminal(), seconds=5, done=500_000)
    assert "1.00M/1.00M [00:05<00:00, 100kB/s]" in text


def test_columns_of_a_table_never_touch() -> None:
    rows = [("", "load, s", "x"), ("a long name", 0.25, "12,345"), (), ("b", "123,456,789")]
    assert console.table(rows).split("\n") == [
        "                 load, s       x",
        "a long name         0.25  12,345",
        "",
        "b            123,456,789",
    ]
    assert console.table([]) == ""
