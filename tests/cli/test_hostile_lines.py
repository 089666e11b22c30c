"""Lines for `triobus run` that nobody has written who means well.

Each is given with good lines around it, without a store and with one. It is a bad line that is said
in one printable line, or an event; the good ones are handled, and nothing else happens.
"""

import contextlib
import io
import json

import pytest

from tests.cli import shop
from tests.sqlite.hostile.probing import check_printable, quick, watched
from triobus.__main__ import main

pytestmark = pytest.mark.usefixtures("printable_log")

FINE = ""
EVIL = "\x1b]0;owned\x07\x9b31m\u202e\u2066\u2028\r\n"
SQL = "'); DROP TABLE events; --"


def line(order="a", metadata=None, **more):
    data = {"order": order, **more}
    members = {"type": "hostile.ordered", "data": data}
    return json.dumps(members | ({} if metadata is None else {"metadata": metadata})).encode()


def raw(text):
    """Return a line with a text in the place of a value."""
    return line(more="?").replace(b'"more": "?"', text)


LINES = {
    # id: the line, and what is said of it; FINE for an event
    "a Decimal of 1e999999999": (line(price="1e999999999"), "data.price: found Decimal('1E+9"),
    "the same as a number": (raw(b'"price": 1e999999999'), "data.price: "),
    "a Decimal of 1e-999999999": (line(price="1e-999999999"), "data.price: found Decimal('1E-9"),
    "a Decimal in a mapping": (line(parts={"a": "1e999999999"}), "data.parts['a']: found"),
    "a Decimal that is NaN": (line(price="NaN"), "data.price"),
    "a Decimal that is sNaN": (line(price="sNaN"), "data.price"),
    "a Decimal without end": (line(price="Infinity"), FINE),
    "a Decimal of 100,000 digits": (line(price="7" * 100_000), FINE),
    "NaN as a literal": (raw(b'"share": NaN'), "not JSON"),
    "Infinity as a literal": (raw(b'"share": -Infinity'), "not JSON"),
    "a float of 1e400": (raw(b'"share": 1e400'), "data.share: expected float"),
    "an integer of 65 bits": (raw(b'"number": %d' % 2**64), "data.number"),
    "an integer of 5,000 digits": (raw(b'"number": ' + b"7" * 5000), "data.number"),
    "an integer of 5,000 digits anywhere": (raw(b'"more": ' + b"7" * 5000), "data.more"),
    "an integer of a million digits": (raw(b'"more": ' + b"7" * 1_000_000), "data.more"),
    "nesting of 100,000": (raw(b'"more": ' + b"[" * 100_000 + b"]" * 100_000), "too deeply"),
    "nesting of 100,000 objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "too deeply"),
    "nesting without end": (b"[" * 1_048_576, "expected a JSON object"),
    "a field twice": (raw(b'"order": "b", "number": 2, "number": 3'), FINE),
    "a type twice": (b'{"type": "x", ' + line()[1:], FINE),
    "65 keys of metadata": (line(metadata={str(n): "" for n in range(65)}), "found 65 keys"),
    "80,000 keys of metadata": (
        line(metadata={str(n): "" for n in range(80_000)}),
        "found 80,000 keys",
    ),
    "a key of 2 KiB": (line(metadata={"k" * 2048: ""}), "a key of 2,048 characters"),
    "a value of 2 KiB": (line(metadata={"k": "v" * 2048}), "a value of 2,048 characters"),
    "escapes in metadata": (line(metadata={"source": EVIL, EVIL: SQL}), FINE),
    "escapes in an aggregate": (line(EVIL), FINE),
    "escapes in an aggregate that is not": (
        line()[:-1] + b', "aggregate": ' + json.dumps(EVIL).encode() + b"}",
        "aggregate: expected 'a'",
    ),
    "escapes in a type": (line().replace(b"hostile.", json.dumps(EVIL)[1:-1].encode()), "unknown"),
    "raw escapes in a type": (line().replace(b"hostile.", b"\x1b[31m"), "not JSON"),
    "raw C1 controls in a type": (line().replace(b"hostile.", "\x9b31m".encode()), "unknown"),
    "escapes in the name of a field": (line(**{EVIL: 1}), "no field of Ordered"),
    "escapes in a mapping": (line(parts={EVIL: "1e99999"}), "data.parts['"),
    "escapes in an error": (line("fail", more=EVIL), FINE),
    "SQL in a type": (line().replace(b"hostile.", SQL.encode()), "unknown"),
    "SQL in an aggregate": (line(SQL), FINE),
    "SQL in the name of a field": (line(**{SQL: 1}), "no field of Ordered"),
    "a function as type": (line().replace(b"hostile.ordered", b"os.system"), "unknown"),
    "a module as type": (line().replace(b"hostile.ordered", b"antigravity:this"), "unknown"),
    "a path as type": (line().replace(b"hostile.ordered", b"../../etc/passwd"), "unknown"),
    "a class as field": (line(__class__="os.system"), "no field of Ordered"),
    "a dict as field": (line(__dict__={}), "no field of Ordered"),
    "a method as field": (line(aggregate_id="b"), "no field of Ordered"),
    "a type of 900 KiB": (line().replace(b"hostile", b"x" * 900_000), "unknown"),
    "a field of 900 KiB": (line(**{"x" * 900_000: 1}), "no field of Ordered"),
    "NUL in a line": (b"\0" * 100, "not JSON"),
    "NUL in a string": (raw(b'"more": "\0"'), "not JSON"),
    "UTF-16": (line().decode().encode("utf-16"), "not UTF-8"),
    "UTF-8 that is too long": (raw(b'"more": "\xc0\xaf"'), "not UTF-8"),
    "a surrogate in UTF-8": (raw(b'"more": "\xed\xa0\x80"'), "not UTF-8"),
    "half of a pair": (raw(b'"more": "\\ud800"'), "half of a surrogate pair"),
    "half of a pair as key": (raw(b'"\\udfff": 1'), "half of a surrogate pair"),
    "bytes behind the end": (line() + b"}", "trailing characters"),
    "two on a line": (line() + line(), "trailing characters"),
    "a cut line": (line()[:-3], "too early"),
    "an id that is none": (line(event_id="x"), "data.event_id: expected UUID"),
    "a time without zone": (line(occurred_at="2025-01-01T00:00:00"), "has no time zone"),
    "a time in the year 99999": (line(occurred_at="99999-01-01T00:00:00Z"), "data.occurred_at"),
    "a time that leaves the calendar": (
        line(occurred_at="0001-01-01T00:00:00+23:59"),
        "data: Ordered refuses it: InvalidEvent",
    ),
    "a string as number": (line(number="7"), "data.number: expected int"),
    "true as number": (line(number=True), "data.number: expected int"),
    "a list as data": (b'{"type": "hostile.ordered", "data": []}', "data: expected a JSON object"),
    "blanks of 1 MiB": (b" " * 1_048_576, FINE),
    "1 MiB of quotes": (b'"' * 1_048_576, "expected a JSON object"),
    "1 MiB of backslashes": (b'"' + b"\\" * 1_048_574 + b'"', "expected a JSON object"),
}
REFUSED_BY_A_STORE = {
    # What a store would not give back as it is.
    "NUL by an escape": (raw(b'"more": "\\u0000"'), "Ordered.more: found '\\x00'"),
    "NUL in an aggregate": (line("\0"), "Ordered.aggregate_id is '\\x00'"),
    "NUL in metadata": (line(metadata={"\0": ""}), "Ordered.metadata"),
    "a number that changes": (raw(b'"more": 1.0e2'), FINE),
}


@pytest.fixture
def path(tmp_path):
    """Where the store is."""
    return tmp_path / "hostile.db"


def run(path, text, *more, on_failure="dead-letter"):
    """Run a line with good ones around it, and return exit code, output and errors."""
    shop.begin(on_failure)
    out, err = io.StringIO(), io.StringIO()
    (path.parent / "lines.jsonl").write_bytes(b"%b\n%b\n%b\n" % (line("first"), text, line("last")))
    arguments = ["run", "tests.cli.shop:bus", "--input", str(path.parent / "lines.jsonl")]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), quick("run"):
        code = main([*arguments, "--skip-bad", *more])
    return code, out.getvalue(), err.getvalue()


def check(path, text, said, *more):
    with watched(path.parent, allowed={"lines.jsonl", path.name}):
        code, out, err = run(path, text, *more)
    check_printable(out + err)
    bad = [message for message in err.splitlines() if ": line 2 of " in message]
    assert [event.order for event in shop.handled][:: max(len(shop.handled) - 1, 1)] == [
        "first",
        "last",
    ]
    # A line that was skipped is as wrong as a handler that failed.
    assert code == (bool(bad) or "fail" in [event.order for event in shop.handled])
    if said == FINE:
        assert bad == []
    else:
        assert len(bad) == 1, err
        assert said in bad[0]
        assert len(bad[0]) < 1000
    assert "Traceback" not in err


@pytest.mark.parametrize(("text", "said"), LINES.values(), ids=LINES)
def test_a_line_is_an_event_or_said_to_be_none(path, text, said):
    check(path, text, said)


def test_a_summary_in_json_says_what_was_in_the_events_and_no_terminal_takes_it_for_a_command(path):
    evil = EVIL + "\x7f\x85\U000e0001"
    code, out, _ = run(path, line(evil, metadata={"source": "é"}), "--json")
    check_printable(out)
    assert code == 0
    assert json.loads(out)["report"][1] == {"order": evil, "source": "é"}
    assert "é" in out


@pytest.mark.parametrize(
    ("text", "said"),
    (LINES | REFUSED_BY_A_STORE).values(),
    ids=LINES | REFUSED_BY_A_STORE,
)
def test_a_line_is_stored_or_said_to_be_none(path, text, said):
    check(path, text, said, "--store", str(path))


def test_the_traceback_of_an_error_that_ends_the_bus_is_printed_without_escapes(path):
    code, out, err = run(path, line("fail", more=EVIL), on_failure="raise")
    assert code == 1
    assert "ValueError: \\x1b]0;owned\\x07" in err
    check_printable(out + err)
