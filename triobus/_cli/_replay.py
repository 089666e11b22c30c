"""`triobus dead-letters STORE replay`: a bus is started on the store and tries them again."""

import argparse
from collections.abc import Awaitable, Callable, Sequence

import attrs
import trio

from triobus._bus import EventBus
from triobus._cli._load import Maker, load, made
from triobus._cli._messages import CommandError, log_on_stderr
from triobus._cli._output import counted, json_text
from triobus._cli._stores import claimed, shown, to_read, to_write
from triobus._errors import BusAlreadyStarted, TriobusError
from triobus._text import leaves
from triobus.stores import EventStore
from triobus.stores._values import DeadLetterKey

TEXT = """\
Start the bus of MODULE:NAME on the store and deliver dead letters again, in order, to the handlers
that failed and no others: those of the ids, or all that the options choose, or all. One that fails
again stays, brought up to date.

While the bus runs it does its other work too: what was published and is not handled yet begins. It
stops as soon as the replay is done; what then waits for a retry stays in the store."""

EPILOG = """\
examples:
  triobus dead-letters shop.db replay shop.events:bus 17
  triobus dead-letters shop.db replay shop.events:bus --error ConnectionError
  triobus dead-letters shop.db replay shop.events:bus --group mail --dry-run

exit codes:
  0  all of them were handled
  1  some have failed again
  2  a bad call, or a store that cannot be used"""

Wanted = Callable[[EventStore, argparse.Namespace], Awaitable[list[DeadLetterKey]]]


@attrs.frozen
class _Replayed:
    """What came of it."""

    tried: int
    handled: int


def replay(options: argparse.Namespace, wanted: Wanted) -> tuple[int, str]:
    """Replay dead letters."""
    found, _ = load(options.target)
    if not options.ids and (options.group, options.error, options.aggregate) == (None, None, None):
        options.all = True
    with log_on_stderr():
        try:
            done = trio.run(_replay, found, options, wanted)
        except BaseExceptionGroup as group:
            ours, others = group.split(TriobusError)
            if ours is None or others is not None:
                raise CommandError(f"a handler ended the bus: {leaves(group)[0]!r}") from group
            raise leaves(ours)[0] from None
    failed = done.tried - done.handled
    if options.json:
        values = {"replayed": done.tried, "handled": done.handled, "failed": failed}
        return int(failed > 0), json_text(values | {"dry_run": options.dry_run})
    if options.dry_run:
        return 0, f"would replay {counted(done.tried, 'dead letter')}"
    said = f"{counted(done.handled, 'dead letter')} handled"
    return int(failed > 0), f"{said}, {failed:,} failed again" if failed else said


async def _replay(
    found: EventBus | Maker, options: argparse.Namespace, wanted: Wanted
) -> _Replayed:
    bus = await made(found) if callable(found) else found
    async with to_read(options.store, options.schema) as reader:
        keys = await wanted(reader, options)
        _check_handlers(bus, keys, shown(reader), options.target)
    if options.dry_run or not keys:
        return _Replayed(len(keys), 0 if options.dry_run else len(keys))
    async with claimed(options.store, options.schema):
        pass  # said before the bus starts, which may do much before it needs the store
    bus.store = to_write(options.store, options.schema)
    try:
        async with bus:
            handled = await bus.dead_letters.replay([key.id for key in keys])
            await bus.stop(drain="running")
    except BusAlreadyStarted as error:
        raise CommandError(str(error)) from None
    return _Replayed(max(len(keys), handled), handled)


def _check_handlers(bus: EventBus, keys: Sequence[DeadLetterKey], store: str, target: str) -> None:
    """Raise `CommandError` unless the bus has the handlers that have failed."""
    has = {
        (name, subscription.name)
        for name, options in bus._lives.options.items()
        for subscription in options.group.subscriptions
    }
    missing = sorted({(key.group, key.subscription) for key in keys} - has)
    if missing:
        said = ", ".join(f"{subscription!r} in group {group!r}" for group, subscription in missing)
        there = ", ".join(f"{name!r} in group {group!r}" for group, name in sorted(has)) or "none"
        raise CommandError(
            f"the dead letters of {store} are of handlers that {target} does not have: "
            f"{said}; it has {there}. Nothing was replayed"
        )
