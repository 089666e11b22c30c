"""Ways to spoil bytes, as plain values that can be shown and made smaller."""

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Mutation = tuple[Any, ...]

TOKENS = (
    *(
        b"NaN",
        b"-Infinity",
        b"null",
        b"true",
        b"[]",
        b"{}",
        b'""',
        b"0",
        b"-1",
        b"1e400",
        b"1e-400",
    ),
    *(b"18446744073709551616", b"-9223372036854775809", b'"1e999999999"', b'"sNaN"', b"7" * 5000),
    *(
        b'"\\ud800"',
        b'"\\u0000"',
        b'"\\u001b[31m"',
        b"\x1b[31m",
        b"\xc2\x9b",
        b"\xff",
        b"\0",
        b"\xef\xbb\xbf",
    ),
    *(b'"type"', b'"data"', b'"metadata"', b'"event_id"', b'"__class__"', b"\r", b"\n", b" "),
    *(
        b"[" * 2000,
        b'{"a":' * 2000,
        b"\\",
        b'"',
        b",",
        b":",
        b"}",
        b"]",
        b"'); DROP TABLE events; --",
    ),
)
"""What parsers are known to stumble over."""


def mutations(tokens: Sequence[bytes] = TOKENS) -> SearchStrategy[Mutation]:
    """Return a strategy of what is done to bytes; the places are fractions of their length."""
    place = st.floats(0, 1, exclude_max=True, allow_subnormal=False)
    size = st.integers(1, 40)
    return st.one_of(
        st.tuples(st.just("set"), place, st.integers(0, 255)),
        st.tuples(st.just("put"), place, st.sampled_from(tokens)),
        st.tuples(st.just("over"), place, size, st.sampled_from(tokens)),
        st.tuples(st.just("drop"), place, size),
        st.tuples(st.just("twice"), place, size),
        st.tuples(st.just("cut"), place),
    )


def mutated(data: bytes, changes: Sequence[Mutation]) -> bytes:
    """Return bytes after what is done to them."""
    for kind, place, *more in changes:
        data = _DONE[kind](data, int(place * len(data)), *more)
    return data


_DONE: dict[str, Callable[..., bytes]] = {
    "set": lambda data, at, value: data[:at] + bytes([value]) + data[at + 1 :],
    "put": lambda data, at, token: data[:at] + token + data[at:],
    "over": lambda data, at, size, token: data[:at] + token + data[at + size :],
    "drop": lambda data, at, size: data[:at] + data[at + size :],
    "twice": lambda data, at, size: data[: at + size] + data[at:],
    "cut": lambda data, at: data[:at],
}
