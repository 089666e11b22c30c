"""Lines for `triobus run`, through the function that the command is: arbitrary ones, spoiled ones.

Every line is read as an event, passed over as blank, or said to be bad in one printable line; and
what stands before and behind is handled.
"""

import contextlib
import io
import json
from decimal import Decimal

import trio
from hypothesis import strategies as st

from tests.cli import shop
from tests.proofs.fuzz.hunting import Quarry
from tests.proofs.fuzz.mutations import Mutation, mutated, mutations
from tests.sqlite.hostile.probing import check_printable, quick
from triobus._cli._input import BytesSource
from triobus._cli._run import Run
from triobus._cli._summary import as_json, as_text

_BEFORE = b'{"type": "hostile.ordered", "data": {"order": "first"}}\n'
_AFTER = b'\n{"type": "hostile.ordered", "data": {"order": "last"}}'


def _line(order: str, number: int, price: Decimal, more: object, metadata: dict[str, str]) -> bytes:
    data = {"order": order, "number": number, "price": str(price), "more": more}
    members = {"type": "hostile.ordered", "data": data, "metadata": metadata}
    return json.dumps(members).encode()


_good = st.builds(
    _line,
    st.text(max_size=5),
    st.integers(),
    st.decimals(),
    st.recursive(
        st.none() | st.floats() | st.text() | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
    st.dictionaries(st.text(), st.text(), max_size=3),
)
_examples = st.lists(
    st.tuples(_good | st.binary(max_size=200), st.lists(mutations(), max_size=3)), max_size=5
)


def check(example: list[tuple[bytes, list[Mutation]]]) -> None:
    """Run the lines; raise what must not be."""
    text = b"\n".join(mutated(line, changes) for line, changes in example)
    lines = [line for line in text.split(b"\n") if line.strip()]
    shop.begin()
    err = io.StringIO()
    with contextlib.redirect_stderr(err), quick("a run"):
        result = Run(
            found=shop.bus,
            source=BytesSource(_BEFORE + text + _AFTER, "lines"),
            skip_bad=True,
            stop_timeout=10,
        )
        trio.run(result.carry_out)
        rows = shop.triobus_report()
        shown = as_text(result, rows) + as_json(result, rows)
    check_printable(err.getvalue() + shown)
    assert result.read + result.bad_lines == len(lines) + 2
    has_failed = "fail" in [event.order for event in shop.handled]
    assert result.exit_code() == (has_failed or result.bad_lines > 0)
    assert len(shop.handled) == result.read
    assert err.getvalue().count("triobus: line ") == result.bad_lines
    assert (shop.handled[0].order, shop.handled[-1].order) == ("first", "last")


QUARRY = Quarry(_examples, check)
