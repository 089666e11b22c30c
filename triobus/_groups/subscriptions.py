"""Subscriptions and groups: which handlers an event goes to, and in which order."""

from collections.abc import Callable, Set
from typing import Any, Literal

import attrs
import trio

from triobus._errors import DuplicateName
from triobus._events import DomainEvent
from triobus._groups.handlers import (
    Handler,
    Invoke,
    Predicate,
    Transact,
    invocation,
    qualified_name,
)
from triobus._groups.retry import Retry
from triobus._groups.subscribing import Wanted, subscribe

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
    _invoke: Invoke
    """Calls the handler with one event, as `where` and the timeout ask."""
    _owner: "Group"
    """The group itself; `group` is its name."""

    def __attrs_post_init__(self) -> None:
        self._is_plain = not self.hold

    def __repr__(self) -> str:
        types = ", ".join(cls.__qualname__ for cls in self.types)
        ended = "" if self.is_active else ", ended"
        return f"<Subscription {self.name!r} of group {self.group!r} to {types}{ended}>"

    def unsubscribe(self) -> None:
        """Stop calling the handler, for events that are already queued too. Harmless when repeated.

        A call that is running is not interrupted; if it fails it is not made again. What waits for
        a retry of it goes on at once.
        """
        if self.is_active:
            self.is_active = self._is_plain = False
            self._owner._remove(self)


@attrs.define(eq=False, repr=False)
class Group:
    """A set of subscriptions that share workers, order and progress. Made by `EventBus.group`."""

    name: str
    """Its name, unique in the bus."""
    _limiter: trio.CapacityLimiter
    _check_types: Callable[[tuple[type[DomainEvent], ...]], None]
    """Raises for classes whose events the bus could not keep."""
    _on_change: Callable[[], None]
    _check_transactional: Callable[[], None]
    """Raises `InvalidOption` if the bus has no store that could commit what a handler writes."""
    _on_gone: Callable[[Subscription], None] | None = attrs.field(default=None, init=False)
    """Called with a subscription that has gone."""
    _transact: Transact = attrs.field(init=False)
    """How the group's log calls a function inside a commit."""
    _by_name: dict[str, Subscription] = attrs.field(factory=dict, init=False)

    def __repr__(self) -> str:
        count = len(self._by_name)
        return f"<Group {self.name!r}, {count} subscription{'s' * (count != 1)}>"

    subscribe = subscribe

    def _subscribe(self, handler: Handler, wanted: Wanted) -> Subscription:
        if wanted.transactional:
            self._check_transactional()
        subscription = Subscription(
            invoke=invocation(
                handler,
                wanted.where,
                wanted.timeout,
                self._limiter,
                self._in_transaction if wanted.transactional else None,
            ),
            name=wanted.name or qualified_name(handler),
            group=self.name,
            types=wanted.types,
            priority=wanted.priority,
            retry=wanted.retry,
            hold=wanted.hold,
            where=wanted.where,
            owner=self,
        )
        if subscription.name in self._by_name:
            raise DuplicateName(
                f"group {self.name!r} already has a subscription named {subscription.name!r}; "
                "give this one another name: subscribe(..., name=...)"
            )
        self._check_types(subscription.types)
        self._by_name[subscription.name] = subscription
        self._on_change()
        return subscription

    async def _in_transaction(
        self, function: Callable[[Any], object], timeout: float | None
    ) -> Any:
        """Call a function inside a commit, with the log that the group has in this life."""
        return await self._transact(function, timeout)

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
        if self._on_gone is not None:
            self._on_gone(subscription)


@attrs.frozen(kw_only=True)
class GroupOptions:
    """What a program has said of a group."""

    group: Group
    workers: int
    buffer: float
    is_ordered: bool
    start: Start
