"""The load of a soak: what subscribes, publishes, comes and goes while a bus lives."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import attrs
import trio

import triobus
from tests.proofs.torture.books import Book, Breaches, Pinged, Soaked, Ticked, identity

BACKLOG = 500
"""How many events a subscription may owe before publishers give it time."""
KEYS = 6
"""How many aggregates each publisher has."""


class Planned(Exception):
    """A handler fails because it is to."""


@attrs.define(eq=False)
class Load:
    """What is done with one kind of bus, life after life."""

    chance: random.Random
    breaches: Breaches
    is_durable: bool
    pause: float
    """How long a publisher rests on average, in seconds."""
    on_handled: Callable[[Soaked], None]
    """Called with everything that is handled."""
    books: list[Book] = attrs.field(init=False)
    unsure: dict[str, list[Soaked]] = attrs.field(factory=dict)
    """By publisher what the store may or may not have: it is published again."""
    is_open: bool = False
    """Whether publishers go on."""
    generation: int = 0
    """Of the aggregates."""
    guests: triobus.Group = attrs.field(init=False)
    _numbers: Iterator[int] = attrs.field(factory=partial(itertools.count, 1))

    def __attrs_post_init__(self) -> None:
        make = partial(Book, "durable" if self.is_durable else "volatile", breaches=self.breaches)
        self.books = [
            make("default", "brisk", is_alone=False),
            make("default", "third", where=lambda e: e.number % 3 == 0, is_alone=False),
            make("loose", "loose", is_ordered=False),
            make("plain", "plain"),
            make("slow", "slow"),
            make("pings", "pings", cls=Pinged, is_ordered=False),
        ]
        if self.is_durable:
            self.books += [make("held", "held", is_held=True), make("late", "late")]

    def book(self, group: str, subscription: str) -> Book | None:
        """Return the book of a subscription that has one."""
        found = (b for b in self.books if (b.group, b.subscription) == (group, subscription))
        return next(found, None)

    # Handlers

    def subscribe(self, bus: triobus.EventBus) -> None:
        """Make the groups with their subscriptions, all but the late one."""
        buffer = 100 if self.is_durable else 40
        quick = triobus.Retry(attempts=3, delay=0.002)
        self._subscribe(bus.subscribe, "default", "brisk", partial(self._brisk, bus), quick)
        once = triobus.Retry(attempts=1)
        self._subscribe(bus.subscribe, "default", "third", self._third, once, priority=-1)
        loose = bus.group("loose", workers=8, ordering="none", buffer=buffer)
        self._subscribe(loose.subscribe, "loose", "loose", self._loose, quick)
        plain = bus.group("plain", workers=3, buffer=buffer)
        plain.subscribe(Ticked, partial(self._plain, bus), name="plain", retry=quick)
        slow = bus.group("slow", workers=2, buffer=20)
        patient = triobus.Retry(attempts=20, delay=0.002, max_delay=0.01)
        self._subscribe(slow.subscribe, "slow", "slow", self._slow, patient, timeout=0.1)
        pings = bus.group("pings", workers=2, buffer=buffer)
        self._subscribe(pings.subscribe, "pings", "pings", self._pass, quick)
        self.guests = bus.group("guests", workers=2, buffer=buffer)
        if self.is_durable:
            held = bus.group("held", workers=2, buffer=buffer)
            twice = triobus.Retry(attempts=2, delay=0.002)
            self._subscribe(held.subscribe, "held", "held", self._hold, twice, hold=True)

    def subscribe_late(self, bus: triobus.EventBus) -> None:
        """Make a group while the bus runs, which has a backlog then."""
        late = bus.group("late", workers=2, buffer=30, start="beginning")
        self._subscribe(late.subscribe, "late", "late", self._pass, triobus.Retry(attempts=2))

    def _subscribe(
        self,
        subscribe: Callable[..., object],
        group: str,
        name: str,
        work: Callable[..., object],
        retry: triobus.Retry,
        **options: object,
    ) -> None:
        book = self.book(group, name)
        assert book is not None
        where = book.where if name == "third" else None

        async def handle(event: Soaked) -> None:
            book.begin(event)
            try:
                await work(book, event)
            except Planned:
                is_last = triobus.current_delivery().attempt == retry.attempts
                # An error beside a cancellation is no failure.
                if is_last and trio.current_effective_deadline() > -float("inf"):
                    book.give_up(event)
                raise
            else:
                book.settle(event)
                self.on_handled(event)
            finally:
                book.rest(event)

        subscribe(book.cls, handle, name=name, retry=retry, where=where, **options)

    async def _pass(self, book: Book, event: Soaked) -> None:
        await trio.lowlevel.checkpoint()

    async def _brisk(self, bus: triobus.EventBus, book: Book, event: Soaked) -> None:
        attempt = triobus.current_delivery().attempt
        if event.number % 5 == 0 and attempt == 1:
            await self.publish(bus, "brisk", [self.ping()])
        self._fail_as_planned(book, event, every=141)
        if event.number % 7 == 0 and attempt == 1:
            raise Planned(event.number)

    async def _third(self, book: Book, event: Soaked) -> None:
        self._fail_as_planned(book, event, every=153)

    async def _loose(self, book: Book, event: Soaked) -> None:
        await trio.sleep(0.004 * self.chance.random())
        self._fail_as_planned(book, event, every=137)

    def _fail_as_planned(self, book: Book, event: Soaked, every: int) -> None:
        """Fail for good, and half of the times again when replayed."""
        is_replayed = identity(event) in book.replaying and event.number % 2
        if event.number % every == 0 and not is_replayed:
            raise Planned("x" * (event.number % 500))

    async def _slow(self, book: Book, event: Soaked) -> None:
        if event.number % 29 == 0 and triobus.current_delivery().attempt == 1:
            await trio.sleep_forever()  # until its timeout
        await trio.sleep(0.001)

    async def _hold(self, book: Book, event: Soaked) -> None:
        await trio.lowlevel.checkpoint()
        if event.number % 161 == 0 and identity(event) not in book.replaying:
            raise Planned(event.number)

    def _plain(self, bus: triobus.EventBus, event: Ticked) -> None:
        book = self.book("plain", "plain")
        assert book is not None
        book.begin(event)
        try:
            attempt = triobus.current_delivery().attempt
            if event.number % 11 == 0 and attempt == 1:
                raise Planned(event.number)
            if event.number % 50 == 0:
                self.publish_in_thread(bus, "plain", self.ping())
            book.settle(event)
            self.on_handled(event)
        finally:
            book.rest(event)

    # Publishing

    async def publish(
        self, bus: triobus.EventBus, publisher: str, events: Sequence[Soaked], *, wait: bool = False
    ) -> None:
        """Publish in one of the ways there are, and write down what may become of it."""
        wait = wait and len(events) == 1
        self.expect(events)
        try:
            if len(events) > 1:
                await bus.publish_many(events)
            elif wait:
                await bus.publish_and_wait(events[0])
            else:
                await bus.publish(events[0])
        except triobus.OutcomeUnknown:
            self.unsure.setdefault(publisher, []).extend(events)
            raise
        except BaseException:
            if not wait:
                self.withdraw(events)
            elif self.is_durable:
                self.unsure.setdefault(publisher, []).extend(events)
            else:
                for book in self._wanting(events[0]):
                    book.doubt(events[0])
            raise

    def publish_in_thread(self, bus: triobus.EventBus, publisher: str, event: Soaked) -> None:
        self.expect([event])
        try:
            bus.publish_from_thread(event)
        except triobus.OutcomeUnknown:
            self.unsure.setdefault(publisher, []).append(event)
            raise
        except BaseException:
            self.withdraw([event])
            raise

    def expect(self, events: Sequence[Soaked]) -> None:
        for event in events:
            for book in self._wanting(event):
                book.expect(event)

    def withdraw(self, events: Sequence[Soaked]) -> None:
        for event in events:
            for book in self._wanting(event):
                book.withdraw(event)

    def _wanting(self, event: Soaked) -> list[Book]:
        return [book for book in self.books if book.wants(event)]

    def ticks(self, publisher: str, count: int) -> list[Soaked]:
        """Return new events of the publisher's aggregates."""
        keys = [f"{publisher}-{self.generation}-{n}" for n in range(KEYS)]
        return [Ticked(next(self._numbers), self.chance.choice(keys)) for _ in range(count)]

    def ping(self) -> Soaked:
        """Return a new event of no aggregate."""
        return Pinged(next(self._numbers))

    @property
    def is_behind(self) -> bool:
        """Whether a subscription owes so much that publishers give it time."""
        return max(map(len, self.books)) > BACKLOG
