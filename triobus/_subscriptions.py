"""Subscriptions and groups: which handlers an event goes to, and in which order."""

from collections.abc import Callable, Set
from typing import TypeVar, overload

import attrs
import trio

from triobus import _checks
from triobus._errors import DuplicateName, InvalidEvent, InvalidOption
from triobus._events import DomainEvent
from triobus._handlers import Handler, Invoke, Predicate, invocation, qualified_name
from triobus._retry import Retry

H = TypeVar("H", bound=Handler)
EventTypes = type[DomainEvent] | tuple[type[DomainEvent], ...]


@attrs.define(eq=False, kw_only=True)
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
    where: Predicate | None = attrs.field(repr=False)
    """The test that an event has to pass."""
    is_plain: bool = attrs.field(init=False, repr=False)
    """Whether every event it matches is simply to be handled: active, and without `hold`."""
    invoke: Invoke = attrs.field(repr=False)
    """Calls the handler with one event, as `where` and the timeout ask."""
    owner: "Group" = attrs.field(repr=False)
    """The group itself; `group` is its name."""

    def __attrs_post_init__(self) -> None:
        self.is_plain = not self.hold

    def unsubscribe(self) -> None:
        """Stop calling the handler, for events that are already queued too. Harmless when repeated.

        A call that is running is not interrupted; if it fails it is not made again.
        """
        if self.is_active:
            self.is_active = self.is_plain = False
            self.owner.remove(self)


@attrs.define(eq=False)
class Group:
    """A set of subscriptions that share workers, order and progress. Made by `EventBus.group`."""

    name: str
    """Its name, unique in the bus."""
    _limiter: trio.CapacityLimiter = attrs.field(repr=False)
    _on_change: Callable[[], None] = attrs.field(repr=False)
    _by_name: dict[str, Subscription] = attrs.field(factory=dict, init=False)

    @overload
    def subscribe(
        self,
        types: EventTypes,
        handler: None = None,
        *,
        name: str | None = None,
        priority: int = 0,
        retry: Retry = ...,
        timeout: float | None = None,
        where: Predicate | None = None,
        hold: bool = False,
    ) -> Callable[[H], H]: ...

    @overload
    def subscribe(
        self,
        types: EventTypes,
        handler: Handler,
        *,
        name: str | None = None,
        priority: int = 0,
        retry: Retry = ...,
        timeout: float | None = None,
        where: Predicate | None = None,
        hold: bool = False,
    ) -> Subscription: ...

    def subscribe(
        self,
        types: EventTypes,
        handler: Handler | None = None,
        *,
        name: str | None = None,
        priority: int = 0,
        retry: Retry = Retry(),  # noqa: B008  # frozen, so that one may serve all
        timeout: float | None = None,
        where: Predicate | None = None,
        hold: bool = False,
    ) -> Subscription | Callable[[H], H]:
        """Call `handler` with every event of `types` that is published from now on.

        Without a handler it is a decorator, which returns the function unchanged. `types` is an
        event class or a tuple of them; each stands for its subclasses too, and `DomainEvent` for
        everything. An `async def` handler runs in a task of the bus, in whose context a context
        variable that it sets stays set; a plain `def` runs in a worker thread.

        - `name`: unique in the group; by default the handler's qualified name.
        - `priority`: inside a delivery higher ones run first, equal ones as they were subscribed.
        - `retry`: how often and when a failed call is made again.
        - `timeout`: seconds after which an attempt is cancelled and counts as failed. A thread
          cannot be interrupted: a plain `def` notices it when it calls
          `trio.from_thread.check_cancelled()`.
        - `where`: a predicate on the event; an error in it is a failure of the handler.
        - `hold`: after a dead letter keep back the later events of its aggregate, as dead letters
          too, until it is replayed or discarded.

        Raises `InvalidEvent`, `InvalidHandler`, `InvalidOption` or `DuplicateName`, and then
        nothing is subscribed.
        """
        found = event_types(types)
        if name is not None:
            _checks.name("name", name)
        if type(priority) is not int:
            raise InvalidOption(f"priority={priority!r}: give a whole number; higher runs first")
        if not isinstance(retry, Retry):
            raise InvalidOption(f"retry={retry!r}: give a Retry, such as Retry(attempts=1)")
        if timeout is not None:
            timeout = _checks.number("timeout", timeout, least=0)
        if type(hold) is not bool:
            raise InvalidOption(f"hold={hold!r}: give True or False")
        _checks.predicate("where", where)

        def add(handler: Handler) -> Subscription:
            subscription = Subscription(
                invoke=invocation(handler, where, timeout, self._limiter),
                name=name or qualified_name(handler),
                group=self.name,
                types=found,
                priority=priority,
                retry=retry,
                hold=hold,
                where=where,
                owner=self,
            )
            self._add(subscription)
            return subscription

        def decorate(handler: H) -> H:
            add(handler)
            return handler

        return decorate if handler is None else add(handler)

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """The subscriptions, in the order in which they were made."""
        return tuple(self._by_name.values())

    def get(self, name: str) -> Subscription | None:
        """Return the subscription of that name, or None."""
        return self._by_name.get(name)

    def plan_for(self, event_type: type[DomainEvent]) -> tuple[Subscription, ...]:
        """Return the subscriptions that want the type, in the order in which they are called."""
        return self.in_order({s for s in self._by_name.values() if issubclass(event_type, s.types)})

    def in_order(self, wanted: Set[Subscription]) -> tuple[Subscription, ...]:
        """Return the subscriptions in the order in which they are called."""
        chosen = [s for s in self._by_name.values() if s in wanted]
        return tuple(sorted(chosen, key=lambda s: -s.priority))

    def _add(self, subscription: Subscription) -> None:
        if subscription.name in self._by_name:
            raise DuplicateName(
                f"group {self.name!r} already has a subscription named {subscription.name!r}; "
                "give this one another name: subscribe(..., name=...)"
            )
        self._by_name[subscription.name] = subscription
        self._on_change()

    def remove(self, subscription: Subscription) -> None:
        """What `Subscription.unsubscribe` does in the group."""
        del self._by_name[subscription.name]
        self._on_change()


def event_types(types: object) -> tuple[type[DomainEvent], ...]:
    """Return `types` as a tuple of event classes, else raise `InvalidEvent`."""
    found = types if isinstance(types, tuple) else (types,)
    if not found:
        raise InvalidEvent("an empty tuple of event types was given: name at least one class")
    for event_type in found:
        if not (isinstance(event_type, type) and issubclass(event_type, DomainEvent)):
            raise InvalidEvent(
                f"{event_type!r} is no event type: give a class derived from DomainEvent, or a "
                "tuple of such classes"
            )
    return found
