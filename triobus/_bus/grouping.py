"""`EventBus.group`: a further group, typed by whether its handlers take one event or a batch."""

from typing import Any, Literal, TypedDict, Unpack, get_args, overload

from triobus import _checks
from triobus._groups.subscriptions import BatchGroup, Group, Start

Ordering = Literal["aggregate", "none"]


class _Options(TypedDict, total=False):
    """The keywords of `group` that have nothing to do with what its handlers take."""

    workers: int
    buffer: float
    ordering: Ordering
    start: Start


@overload
def group(self: Any, name: str, *, batch: None = None, **options: Unpack[_Options]) -> Group: ...


@overload
def group(self: Any, name: str, *, batch: int, **options: Unpack[_Options]) -> BatchGroup: ...


def group(
    self: Any,
    name: str,
    *,
    workers: int = 4,
    buffer: float = 1000,
    ordering: Ordering = "aggregate",
    start: Start = "now",
    batch: int | None = None,
) -> Group:
    """Make a further group, with its own workers, order and buffer.

    `ordering="none"` lets the events of one aggregate be handled at the same time. `start` says
    whether a group that the store does not know begins with what is stored from the
    "beginning", or with what comes after its first subscription; one that it knows goes on
    where it ended. Without a store there is nothing before "now". While the bus runs the
    group's workers come at once.

    With `batch` the handlers of the group take a tuple of up to that many events at once, in
    their order: whatever is ready, without waiting for more. It is one attempt; if it fails for
    good it is halved until the events are known that fail alone, and these become dead
    letters. What waits for a retry takes room of `buffer`.

    Raises `InvalidOption` or `DuplicateName`.
    """
    _checks.name("name", name)
    _checks.whole_number("workers", workers, least=1)
    _checks.capacity("buffer", buffer, least=0)
    _checks.choice("ordering", ordering, get_args(Ordering))
    _checks.choice("start", start, get_args(Start))
    if batch is not None:
        _checks.whole_number("batch", batch, least=1)
    found: Group = self._lives.add_group(
        name,
        workers=workers,
        buffer=buffer,
        is_ordered=ordering == "aggregate",
        batch=batch,
        start=start,
    )
    return found
