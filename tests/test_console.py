"""What reaches the terminal."""

from llama import console


def test_columns_of_a_table_never_touch() -> None:
    rows = [("", "load, s", "x"), ("a long name", 0.25, "12,345"), (), ("b", "123,456,789")]
    assert console.table(rows).split("\n") == [
        "                 load, s       x",
        "a long name         0.25  12,345",
        "",
        "b            123,456,789",
    ]
    assert console.table([]) == ""
