"""Lines are put together from chunks, within limits."""

import tracemalloc

from triobus._cli._input import LONGEST_LINE, Line, LineSplitter


def split(*chunks: bytes) -> list[Line]:
    splitter = LineSplitter()
    return [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.end()


def test_lines_are_put_together_across_chunks() -> None:
    assert split(b"a", b"b\nc", b"\n", b"\nd") == [Line(1, b"ab"), Line(2, b"c"), Line(4, b"d")]


def test_blank_lines_are_counted_and_passed_over() -> None:
    assert split(b"\n \t\r\na\r\n\n") == [Line(3, b"a\r")]


def test_a_line_may_have_one_mebibyte_and_no_more() -> None:
    longest = b"x" * LONGEST_LINE
    assert split(longest, b"\n", longest, b"y\n", b"z") == [
        Line(1, longest),
        Line(2, None),
        Line(3, b"z"),
    ]


def test_a_line_that_is_too_long_is_reported_before_it_ends() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"x" * (LONGEST_LINE + 1)) == [Line(1, None)]
    assert splitter.feed(b"x" * LONGEST_LINE) == []
    assert splitter.feed(b"\na\n") == [Line(2, b"a")]


def test_a_line_without_an_end_takes_little_more_memory_than_it_may_have() -> None:
    splitter = LineSplitter()
    chunk = b"x" * 65536
    tracemalloc.start()
    try:
        found = [line for _ in range(1000) for line in splitter.feed(chunk)]
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == [Line(1, None)]
    assert most < 2.5 * LONGEST_LINE
