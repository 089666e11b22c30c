"""The retries that wait, as a bus shows them: list, retry now, give up."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import nsmallest
from typing import Any, Protocol

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from triobus import _checks
from triobus._errors import InvalidOption
from triobus._events import DomainEvent
from triobus._groups.dead_letters import DeadLetterKeeper
from triobus._groups.delivery import Waiting
from triobus._groups.workers import GroupShell
from triobus._text import shown


@attrs.frozen(kw_only=True)
class WaitingRetry:
    """A delivery that waits for the next attempt of a handler. Returned by `bus.retries.list`."""

    id: int
    """What it is known by in its group, while it waits."""
    event: DomainEvent | None
    """The event; None for one in a store that cannot be made from its JSON."""
    position: int | None
    """Its place in the store's log; None without a store."""
    aggregate_id: str | None
    """What it is about, in a group that keeps the order of aggregates."""
    group: str
    """The name of the group."""
    subscription: str
    """The name of the subscription whose handler is called again."""
    attempts: int
    """How many attempts that one has had which count; a replay's are counted anew."""
    error: str | None
    """The last error, in one line. None where it is not known: from before the bus was started, or
    where more than 256 different ones would have to be kept for events that a store has."""
    due: float
    """When the next attempt is due, in seconds of Trio's clock: `trio.current_time()` is now."""


Chosen = WaitingRetry | Iterable[WaitingRetry]
Listed = list[WaitingRetry]  # inside the class, `list` is a method


class Life(Protocol):
    """What is asked of the life of a bus."""

    @property
    def shells(self) -> Mapping[str, GroupShell]:
        """The groups by name."""

    @property
    def letters(self) -> DeadLetterKeeper:
        """The dead letters."""


@attrs.define(eq=False, repr=False)
class Retries:
    """What waits for a retry in a bus; `bus.retries`.

    The bus has to run. With a store it keeps no more of what waits than its place, its time and a
    line about the error, and events are read back to be shown.
    """

    _life: Callable[[], Life]
    _check_running: Callable[[str], None]

    def __repr__(self) -> str:
        count = sum(shell.lanes.waiting for shell in self._life().shells.values())
        return f"<Retries, {count} of them>"

    async def list(
        self, group: str | None = None, aggregate_id: str | None = None, limit: int = 100
    ) -> Listed:
        """Return what waits for a retry, of one group or aggregate if that is given.

        The first `limit` that are due, in that order. Raises `BusClosed`, `InvalidOption` for a
        group that the bus has not, and `StoreError` where events cannot be read.
        """
        _checks.whole_number("limit", limit, least=0)
        self._check_running("retries.list()")
        waiting = self._waiting(group, aggregate_id)
        first = nsmallest(limit, waiting, key=lambda pair: (pair[1].due, pair[1].number))
        await trio.lowlevel.checkpoint()
        return [await _shown(shell, found) for shell, found in first]

    @enable_ki_protection
    async def retry_now(
        self,
        retries: Chosen | None = None,
        *,
        group: str | None = None,
        aggregate_id: str | None = None,
    ) -> int:
        """Make attempts now that would be due later; return for how many events.

        Give retries as `list` returns them, or a group, an aggregate or both; without anything all
        of the bus are meant. What does not wait any more is left alone. A batch goes as a whole.
        Nothing is waited for but room: a paused group makes the attempts when it goes on. Raises
        `BusClosed` and `InvalidOption`, and then nothing has happened.
        """
        self._check_running("retries.retry_now()")
        chosen = self._chosen(retries, group, aggregate_id)
        await trio.lowlevel.checkpoint_if_cancelled()
        count = sum(shell.hurry(numbers) for shell, numbers in chosen)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return count

    @enable_ki_protection
    async def give_up(self, retries: Chosen) -> int:
        """Make no further attempt: the events become dead letters; return how many did.

        Give retries as `list` returns them. The dead letters have the error `GivenUp`, which names
        the last one, and can be replayed; the delivery goes on with the next handler. What does not
        wait any more is left alone. A batch is given up as a whole. With `on_failure="raise"` they
        become dead letters too.

        With a store it returns when that is stored. Cancelled, some may have been given up. Raises
        `BusClosed`, `InvalidOption`, and `StoreError` if events cannot be read, or if it could not
        be stored yet that they are dead letters.
        """
        self._check_running("retries.give_up()")
        chosen = self._chosen(retries, None, None)
        await trio.lowlevel.checkpoint_if_cancelled()
        count = 0
        for shell, numbers in chosen:
            count += await shell.give_up(numbers)
        await trio.lowlevel.cancel_shielded_checkpoint()
        await self._life().letters.flush()
        return count

    def _waiting(
        self, group: str | None, aggregate_id: str | None
    ) -> Iterator[tuple[GroupShell, Waiting]]:
        shells = self._life().shells
        if group is not None and group not in shells:
            names = ", ".join(map(repr, shells))
            raise InvalidOption(f"group={group!r}: the bus has no such group; it has: {names}")
        return (
            (shell, found)
            for name, shell in shells.items()
            if group in (None, name)
            for found in shell.lanes.look()
            if aggregate_id in (None, found.key)
        )

    def _chosen(
        self, retries: Chosen | None, group: str | None, aggregate_id: str | None
    ) -> Iterable[tuple[GroupShell, set[int]]]:
        """Return numbers by group; raises `InvalidOption`."""
        shells, numbers = self._life().shells, dict[str, set[int]]()
        if retries is None:
            for shell, found in self._waiting(group, aggregate_id):
                numbers.setdefault(shell.group.name, set()).add(found.number)
        elif group is not None or aggregate_id is not None:
            raise InvalidOption(
                f"group={group!r}, aggregate_id={aggregate_id!r}: one of them was given beside "
                "retries: give either"
            )
        else:
            for retry in _each(retries):
                numbers.setdefault(retry.group, set()).add(retry.id)
        return [(shells[name], found) for name, found in numbers.items() if name in shells]


async def _shown(shell: GroupShell, found: Waiting) -> WaitingRetry:
    event: Any = found.event
    if event is None:
        event = await shell.log.event_at(found.position)
    return WaitingRetry(
        id=found.number,
        event=event if isinstance(event, DomainEvent) else None,
        position=found.position,
        aggregate_id=found.key,
        group=shell.group.name,
        subscription=found.subscription.name,
        attempts=found.attempt,
        error=found.error,
        due=found.due,
    )


def _each(retries: Any) -> list[WaitingRetry]:
    """Return what was given as a list. Raises `InvalidOption`."""
    is_one = isinstance(retries, (WaitingRetry, str)) or not isinstance(retries, Iterable)
    found = [retries] if is_one else [*retries]
    for retry in found:
        if not isinstance(retry, WaitingRetry):
            raise InvalidOption(f"{shown(retry)} is no retry: give what retries.list() returned")
    return found
