"""Subscriptions and groups: which handlers an event goes to, and in which order."""

from collections.abc import Callable, Set
from datetime import datetime
from typing import Any, Literal, Protocol

import attrs
import trio
from trio.lowlevel import checkpoint_if_cancelled

from triobus._checks import check_plain
from triobus._errors import DuplicateName, GroupNotPaused, InvalidOption
from triobus._events import DomainEvent
from triobus._groups.handlers import (
    Handler,
    Invoke,
    Predicate,
    filtered,
    invocation,
    qualified_name,
)
from triobus._groups.instruments import Instruments, observed
from triobus._groups.retry import Retry
from triobus._groups.subscribing import Wanted, subscribe
from triobus._groups.subscribing_batches import subscribe_batch

Start = Literal["now", "beginning"]


@attrs.define(eq=False, kw_only=True, repr=False)
class Subscription:
    """One handler bound to event types in a group. Made by `subscribe`."""

    name: str
    """Unique in its group; the handler's qualified name unless one was given."""
    group: str
    """The name of its group."""
    types: tuple[type[DomainEvent], ...]
    """The classes it receives, with their subclasses."""
    priority: int
    """Inside a delivery handlers with a higher one run first."""
    retry: Retry
    """What happens when the handler fails."""
    hold: bool
    """Whether later events of an aggregate follow a dead letter, until that is dealt with."""
    is_active: bool = attrs.field(default=True, init=False)
    """False once it was unsubscribed."""
    _where: Predicate | None
    """The test that an event has to pass."""
    _is_plain: bool = attrs.field(init=False)
    """Whether every event it matches is simply to be handled: active, and without `hold`."""
    _call: Invoke
    """Calls the handler with one event, as its timeout asks."""
    _invoke: Invoke
    """What a worker calls: the same, with `where` and the instruments around it."""
    _owner: "Group"
    """The group itself; `group` is its name."""
    _handler: Handler
    """What the program gave."""
    _timeout: float | None
    _takes_transaction: bool
    """Whether the handler is called with a transaction, for one event at a time."""
    _is_transactional: bool
    """Whether it is called so, and nobody looks on."""

    def __attrs_post_init__(self) -> None:
        self._is_plain = not self.hold

    def __repr__(self) -> str:
        types = ", ".join(cls.__qualname__ for cls in self.types)
        ended = "" if self.is_active else ", ended"
        return f"<Subscription {self.name!r} of group {self.group!r} to {types}{ended}>"

    @property
    def _shares_commits(self) -> bool:
        """Whether it is called in one commit with others, as `Effects` does."""
        return self._is_transactional and self.is_active and not self.hold

    def _observe(self) -> None:
        """Put together what a worker calls, with the instruments that there are now.

        One that is looked on is called by itself, and not in one commit with others.
        """
        instruments, is_batch = self._owner._instruments, self._owner._batch is not None
        invoke = observed(self._call, instruments, is_batch=is_batch)
        is_observed = invoke is not self._call or bool(instruments.around)
        self._is_transactional = self._takes_transaction and not is_observed
        invoke = filtered(invoke, self._where, is_batch=is_batch)
        for watcher in instruments.around:
            invoke = watcher.around(self, invoke)
        self._invoke = invoke

    def unsubscribe(self) -> None:
        """Stop calling the handler, for events that are already queued too. Harmless when repeated.

        A call that is running is not interrupted; if it fails it is not made again. What waits for
        a retry of it goes on at once.
        """
        if self.is_active:
            self.is_active = self._is_plain = False
            self._owner._remove(self)


class Running(Protocol):
    """What runs for a group in one life of its bus."""

    def let_go(self, subscription: Subscription, /) -> None:
        """Carry on without a subscription that has gone."""

    async def transact(self, function: Callable[[Any], object], timeout: float | None, /) -> object:
        """Call a function with a transaction, inside a commit that settles the calling delivery."""

    def check_not_inside(self, call: str, /) -> None:
        """Raise `WouldDeadlock` inside a handler of the group."""

    async def rest(self) -> None:
        """Begin nothing any more, and wait until no handler runs."""

    async def resume(self) -> None:
        """Begin again what there is."""

    async def reset(
        self, to: int | datetime | None, transaction: Callable[[Any], object] | None, /
    ) -> None:
        """Go on from another place in the log; None for its end."""


def _target(to: object) -> int | datetime | None:
    """Return where a group is to go on; None for the end of the log. Raises `InvalidOption`."""
    if to == "beginning":
        return 0
    if to == "end":
        return None
    if isinstance(to, datetime) and to.utcoffset() is not None:
        return to
    if type(to) is int and to >= 0:
        return to
    raise InvalidOption(
        f"to={to!r}: give 'beginning', 'end', a position of the log or an aware datetime"
    )


@attrs.define(eq=False, repr=False)
class Group:
    """A set of subscriptions that share workers, order and progress. Made by `EventBus.group`."""

    name: str
    """Its name, unique in the bus."""
    _limiter: trio.CapacityLimiter
    _batch: int | None
    """How many events its handlers take at once; None for one, which is no tuple."""
    _check_types: Callable[[tuple[type[DomainEvent], ...]], None]
    """Raises for classes whose events the bus could not keep."""
    _on_change: Callable[[], None]
    _check_transactional: Callable[[], None]
    """Raises `InvalidOption` if the bus has no store that could commit what a handler writes."""
    _instruments: Instruments
    _is_paused: bool = attrs.field(default=False, init=False)
    _resetting: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    """The task that resets the group has it, and nothing resumes the group meanwhile."""
    _running: Running = attrs.field(init=False)
    """What runs for the group in this life of the bus, or the last one."""
    _by_name: dict[str, Subscription] = attrs.field(factory=dict, init=False)

    def __repr__(self) -> str:
        count = len(self._by_name)
        return f"<Group {self.name!r}, {count} subscription{'s' * (count != 1)}>"

    subscribe = subscribe

    def _subscribe(self, handler: Handler, wanted: Wanted) -> Subscription:
        if wanted.transactional:
            self._check_transactional()
        call = invocation(
            handler,
            wanted.timeout,
            self._limiter,
            self._in_transaction if wanted.transactional else None,
        )
        subscription = Subscription(
            call=call,
            invoke=call,
            name=wanted.name or qualified_name(handler),
            group=self.name,
            types=wanted.types,
            priority=wanted.priority,
            retry=wanted.retry,
            hold=wanted.hold,
            where=wanted.where,
            owner=self,
            handler=handler,
            timeout=wanted.timeout,
            takes_transaction=wanted.transactional and self._batch is None,
            is_transactional=False,
        )
        if subscription.name in self._by_name:
            raise DuplicateName(
                f"group {self.name!r} already has a subscription named {subscription.name!r}; "
                "give this one another name: subscribe(..., name=...)"
            )
        self._check_types(subscription.types)
        subscription._observe()
        self._by_name[subscription.name] = subscription
        self._on_change()
        return subscription

    async def _in_transaction(
        self, function: Callable[[Any], object], timeout: float | None
    ) -> Any:
        """Call a function inside a commit, with the log that the group has in this life."""
        return await self._running.transact(function, timeout)

    async def pause(self) -> None:
        """Begin with no further event; return when no handler of the group is running.

        Publishing goes on, as far as there is room; with a store the rest stays there. A bus that
        stops does not wait for what a paused group has left, and starts with it paused, but
        `wait_idle` and `publish_and_wait` wait until the group has gone on. Cancelled
        while it waits, the group is paused all the same. Raises `WouldDeadlock` inside a handler
        of the group.
        """
        self._running.check_not_inside("pause()")
        await checkpoint_if_cancelled()
        if not self._is_paused:
            self._is_paused = True
            self._instruments.call("group_paused", self.name)
        await self._running.rest()

    async def resume(self) -> None:
        """Go on where the group was paused; harmless if it is not."""
        async with self._resetting:
            if self._is_paused:
                self._is_paused = False
                self._instruments.call("group_resumed", self.name)
            await self._running.resume()

    async def reset(
        self,
        to: Literal["beginning", "end"] | int | datetime,
        *,
        transaction: Callable[[Any], object] | None = None,
    ) -> None:
        """Go on from another place in the log, and forget what the group has come to.

        The group has to be paused, and its bus to run with a store. Progress, attempts and dead
        letters of the group are set anew in one commit: everything counts as settled up to a
        position, or that was stored before an aware datetime; "beginning" is position 0 and "end"
        the last one. `transaction` is a plain function of a `Transaction`, called in the same
        commit, to empty a read model that is going to be built again.

        Cancelled before the commit has begun, nothing is changed; after that its end is waited for.
        Raises `GroupNotPaused`, `InvalidOption`, `BusClosed`, `StoreError`, and what `transaction`
        raises: then nothing is changed.
        """
        target = _target(to)
        if transaction is not None:
            check_plain("transaction", transaction)
        self._running.check_not_inside("reset()")
        async with self._resetting:
            if not self._is_paused:
                raise GroupNotPaused(
                    f"reset() of group {self.name!r} would move it while it works: pause it "
                    "before, await group.pause(), and let it go on then, await group.resume()"
                )
            await self._running.rest()
            await self._running.reset(target, transaction)

    def _observe(self) -> None:
        """Take it up that an instrument has come or gone."""
        for subscription in self._by_name.values():
            subscription._observe()

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """The subscriptions, in the order in which they were made."""
        return tuple(self._by_name.values())

    def _get(self, name: str) -> Subscription | None:
        """Return the subscription of that name, or None."""
        return self._by_name.get(name)

    def _plan_for(self, event_type: type[DomainEvent]) -> tuple[Subscription, ...]:
        """Return the subscriptions that want the type, in the order in which they are called."""
        return self._in_order(
            {s for s in self._by_name.values() if issubclass(event_type, s.types)}
        )

    def _in_order(self, wanted: Set[Subscription]) -> tuple[Subscription, ...]:
        """Return the subscriptions in the order in which they are called."""
        chosen = [s for s in self._by_name.values() if s in wanted]
        return tuple(sorted(chosen, key=lambda s: -s.priority))

    def _remove(self, subscription: Subscription) -> None:
        """What `Subscription.unsubscribe` does in the group."""
        del self._by_name[subscription.name]
        self._on_change()
        self._running.let_go(subscription)


class BatchGroup(Group):
    """A group whose handlers take a tuple of events. Made by `EventBus.group` with `batch`."""

    subscribe = subscribe_batch  # type: ignore[assignment]  # its handlers take tuples


@attrs.frozen(kw_only=True)
class GroupOptions:
    """What a program has said of a group."""

    group: Group
    workers: int
    buffer: float
    is_ordered: bool
    batch: int | None
    start: Start
