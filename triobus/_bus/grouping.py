"""`EventBus.group` and `include`: further groups, and handlers that were declared elsewhere."""

from typing import Any, Literal, TypedDict, Unpack, get_args, overload

from triobus import _checks
from triobus._errors import InvalidOption
from triobus._groups.declared import BatchHandlers, Handlers
from triobus._groups.subscriptions import BatchGroup, Group, Start, Subscription

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


def include(self: Any, handlers: Handlers, *, group: str = "default") -> tuple[Subscription, ...]:
    """Subscribe what is declared in `handlers`, all of it in one group; return the subscriptions.

    A group that the bus has not is made, as `bus.group(group)` does it. What is declared later is
    not taken. Raises `InvalidOption` where the group has batches and the handlers take single
    events, or the other way round, and what `subscribe` raises: then none is subscribed.
    """
    if not isinstance(handlers, Handlers):
        raise InvalidOption(f"handlers={handlers!r}: give a Handlers, with what is declared there")
    _checks.name("group", group)
    options = self._lives.options.get(group)
    has_batches = options is not None and options.batch is not None
    if has_batches is not isinstance(handlers, BatchHandlers):
        takes = "single events" if has_batches else "batches"
        raise InvalidOption(
            f"group={group!r} gives its handlers {'batches' if has_batches else 'single events'}, "
            f"and these take {takes}: declare them in "
            f"{'BatchHandlers()' if has_batches else 'Handlers()'}, or make the group "
            f"{'without batch' if has_batches else 'before, with batch=...'}"
        )
    target: Group = self.group(group) if options is None else options.group
    made: list[Subscription] = []
    try:
        for handler, wanted in handlers._all():
            made.append(target._subscribe(handler, wanted))  # one may raise
    except BaseException:
        for subscription in made:
            subscription.unsubscribe()
        raise
    return tuple(made)
