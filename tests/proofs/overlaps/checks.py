"""What has to be true after two calls have met, whatever they were and whenever they met."""

from collections import defaultdict
from collections.abc import Iterator

from tests.proofs.overlaps.calls import Role
from tests.proofs.overlaps.ledger import Ledger, Sub, number_of
from tests.proofs.overlaps.stage import BodyFailed, Stage
from triobus import (
    BusAlreadyStarted,
    BusClosed,
    EventBus,
    OutcomeUnknown,
    StoreClosed,
    Stored,
    StoreInUse,
)

_CLOSED = (BusClosed, StoreClosed)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield what is in a group, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def told(error: BaseException) -> str:
    """Return an error's type and message, and where it was raised last."""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    place = ""
    if where is not None:
        code = where.tb_frame.f_code
        place = f" (raised in {code.co_qualname}, line {where.tb_lineno})"
    return f"{type(error).__name__}: {str(error)[:300]}{place}"


def check_errors(stage: Stage, roles: tuple[Role, Role]) -> Iterator[str]:
    """Yield what was raised and is not documented."""
    is_ended = any(role.call.ends for role in roles) or roles[0].call.needs == "new"
    for role in roles:
        expected: tuple[type[BaseException], ...] = role.call.errors
        other = roles[1] if role is roles[0] else roles[0]
        if is_ended or (role.call.name.startswith("store ") and not stage.hosts):
            expected += _CLOSED
        if stage.ledger.is_crashed:
            expected += (OutcomeUnknown,)
        if other.call.name == "second bus" or "start" in other.call.name:
            expected += (StoreInUse,) if role.call.ends else ()
        if role.error is not None:
            for error in leaves(role.error):
                if not isinstance(error, expected) or _is_bare(error):
                    yield f"{role.name} ({role.call.name}) raised {told(error)}"
    for host in stage.hosts:
        if host.error is None:
            continue
        for error in leaves(host.error):
            expected = (BusAlreadyStarted, StoreInUse)
            expected += (BodyFailed,) if host.is_failing else ()
            expected += (BusClosed,) if stage.ledger.is_crashed else ()  # while it started
            if not isinstance(error, expected):
                yield f"the block raised {told(error)}"


def _is_bare(error: BaseException) -> bool:
    """Whether it is an error that is not triobus's own."""
    return not type(error).__module__.startswith(("triobus", "tests"))


def check_stopped(bus: EventBus) -> Iterator[str]:
    """Yield what a bus whose block has ended still does."""
    found = bus.statistics()
    if bus.health().status != "stopped" or found.running:
        yield f"the bus is {bus.health().status} after its block, running={found.running}"
    if found.worker_count:
        yield f"{found.worker_count} workers after the block"
    for name, group in found.groups.items():
        known = group.handled + group.queued + group.in_flight + group.waiting_for_retry
        if group.published != known:
            yield f"group {name!r} does not add up after the block: {group}"


def check_log(ledger: Ledger, log: list[Stored]) -> Iterator[str]:
    """Yield what the log does not have, has too much, or has elsewhere than was told."""
    places = {number_of(stored.event): stored.position for stored in log}
    if len(places) != len(log):
        yield f"an event is in the log twice: {[s.event for s in log]}"
    if [stored.position for stored in log] != list(range(1, len(log) + 1)):
        yield f"the log's positions are {[stored.position for stored in log]}"
    for number, positions in ledger.accepted.items():
        if set(positions) != {places.get(number)}:
            yield f"number {number} was told positions {positions}, and is at {places.get(number)}"
    for number in sorted(ledger.refused - ledger.accepted.keys() - ledger.unsure):
        if number in places:
            yield f"number {number} was refused, and is in the log"
    for found in ledger.finished:
        if found.position != places.get(found.number):
            yield f"{found} was told its position, and it is {places.get(found.number)}"


def check_handled(stage: Stage, left: dict[str, int] | None, dead: set[int]) -> Iterator[str]:
    """Yield what was lost, repeated or handled without having been accepted.

    `left` is what the bus itself counts as left, by group, if nobody takes it up.
    """
    ledger = stage.ledger
    for number in sorted(ledger.refused - ledger.accepted.keys() - ledger.unsure):
        subs = {found.sub for found in ledger.finished if found.number == number}
        if subs:
            yield f"number {number} was refused, and {sorted(subs)} handled it"
    for sub, since in ledger.subscribed.items():
        missing = []
        for number, accepted in ledger.accepted.items():
            times = ledger.times(sub, number)
            most = 1 if stage.store is not None else len(accepted)
            most += number in ledger.unsure and stage.store is None
            if times > most and not ledger.is_crashed:
                yield f"{sub} handled number {number} {times} times of {most}"
            is_settled = times or (sub == ("default", "it") and number in dead | ledger.discarded)
            is_wanted = ledger.began[number] > since and sub not in ledger.leaving
            if sub != ("all", "every") or not stage.is_durable:
                is_wanted = is_wanted and number in ledger.published
            if is_wanted and not is_settled:
                missing.append(number)
        # A handler that has begun is proof that the event was accepted.
        begun = {number for who, number in ledger.attempts if who == sub}
        if sub not in ledger.leaving:
            lost = begun - set(missing) - (dead | ledger.discarded)
            missing.extend(n for n in sorted(lost) if not ledger.times(sub, n))
        if left is not None and len(missing) > left.get(sub[0], 0):
            yield f"{sub} never handled {missing}, and {left.get(sub[0], 0)} are counted as left"
        elif left is None and missing:
            yield f"{sub} never handled {missing}"


def check_order(stage: Stage) -> Iterator[str]:
    """Yield aggregates whose events were handled in another order than they were accepted in."""
    ledger = stage.ledger
    first: dict[tuple[Sub, str, int], dict[int, None]] = defaultdict(dict)
    for found in ledger.finished:
        key = ledger.keys[found.number]
        positions = ledger.accepted.get(found.number, [None])
        if key is None or found.number in ledger.replayed or len(positions) > 1:
            continue
        # Without positions, or with those of another log in each life, only what one task published
        # has an order that is known.
        is_placed = stage.is_durable and positions[0] is not None
        family = -1 if is_placed else found.number // 100
        first[found.sub, key, family].setdefault(found.number)
    for (sub, key, family), found_numbers in first.items():
        numbers = list(found_numbers)
        places = {n: n if family >= 0 else ledger.accepted[n][0] or 0 for n in numbers}
        if numbers != sorted(numbers, key=places.__getitem__):
            yield f"{sub} handled {numbers} of aggregate {key!r} out of order"


def check_heard(ledger: Ledger) -> Iterator[str]:
    """Yield what listeners missed, or heard twice or in another order."""
    for heard in ledger.heard:
        ended = 0 if heard.ended is None else heard.ended
        if len(set(heard.numbers) - {50}) != len([n for n in heard.numbers if n != 50]):
            yield f"a listener heard {heard.numbers}"
        missing = [
            number
            for number in ledger.published
            if heard.entered < ledger.began[number] < ended and number not in heard.numbers
        ]
        if missing and not ledger.is_crashed:
            yield f"a listener heard {heard.numbers} and not {missing}"
