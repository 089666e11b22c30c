"""The load of a soak: what subscribes, publishes, comes and goes while a bus lives."""

import itertools
import random
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

import attrs
import trio

import triobus
from tests.torture.books import Book, Breaches, Identity, Pinged, Soaked, Ticked, identity

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
    letters_replayed: int = 0
    letters_discarded: int = 0
    heard: int = 0
    _guests: triobus.Group = attrs.field(init=False)
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
        self._guests = bus.group("guests", workers=2, buffer=buffer)
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
            await self.publish(bus, "brisk", [Pinged(next(self._numbers))])
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
                ping = Pinged(next(self._numbers))
                self._publish_in_thread(bus, "plain", ping)
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
        self._expect(events)
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
                self._withdraw(events)
            elif self.is_durable:
                self.unsure.setdefault(publisher, []).extend(events)
            else:
                for book in self._wanting(events[0]):
                    book.doubt(events[0])
            raise

    def _publish_in_thread(self, bus: triobus.EventBus, publisher: str, event: Soaked) -> None:
        self._expect([event])
        try:
            bus.publish_from_thread(event)
        except triobus.OutcomeUnknown:
            self.unsure.setdefault(publisher, []).append(event)
            raise
        except BaseException:
            self._withdraw([event])
            raise

    def _expect(self, events: Sequence[Soaked]) -> None:
        for event in events:
            for book in self._wanting(event):
                book.expect(event)

    def _withdraw(self, events: Sequence[Soaked]) -> None:
        for event in events:
            for book in self._wanting(event):
                book.withdraw(event)

    def _wanting(self, event: Soaked) -> list[Book]:
        return [book for book in self.books if book.wants(event)]

    def _ticks(self, publisher: str, count: int) -> list[Soaked]:
        keys = [f"{publisher}-{self.generation}-{n}" for n in range(KEYS)]
        return [Ticked(next(self._numbers), self.chance.choice(keys)) for _ in range(count)]

    @property
    def is_behind(self) -> bool:
        """Whether a subscription owes so much that publishers give it time."""
        return max(map(len, self.books)) > BACKLOG

    # Who is there while a bus lives

    def start(self, nursery: trio.Nursery, bus: triobus.EventBus) -> None:
        """Start everybody; they leave when the bus is closed, or `is_open` is false."""
        self.is_open = True
        publishers = ["one", "two", "three"] if self.is_durable else ["one", "two"]
        for name in publishers:
            nursery.start_soon(_until_closed, self.run_publisher, bus, name)
        for name in ("foreign", "strange"):
            nursery.start_soon(_until_closed, self.run_foreign_thread, bus, name)
        for name in ("brisk", "plain"):  # handlers, which publish too
            nursery.start_soon(_until_closed, self.clear_up, bus, name)
        if not self.is_durable:
            nursery.start_soon(_until_closed, self.run_hurried_publisher, bus, "hurried")
        nursery.start_soon(_until_closed, self.run_guests)
        for run in (self.run_listeners, self.run_listeners, self.run_waiters, self.run_letters):
            nursery.start_soon(_until_closed, run, bus)

    async def clear_up(self, bus: triobus.EventBus, publisher: str) -> None:
        """Publish again what the store may or may not have."""
        while events := self.unsure.get(publisher, []):
            await bus.publish_many(events)
            del self.unsure[publisher]

    async def run_publisher(self, bus: triobus.EventBus, name: str) -> None:
        """Publish, now one and now many, until the bus is closed."""
        await self.clear_up(bus, name)
        while self.is_open:
            count = self.chance.choice((1, 1, 2, 10))
            await self.publish(bus, name, self._ticks(name, count), wait=self.chance.random() < 0.1)
            await trio.sleep(self.pause * 2 * self.chance.random())
            if self.is_behind:
                await trio.sleep(0.2)

    async def run_hurried_publisher(self, bus: triobus.EventBus, name: str) -> None:
        """Publish without waiting, as is possible in memory."""
        while self.is_open:
            (event,) = self._ticks(name, 1)
            self._expect([event])
            try:
                bus.publish_nowait(event)
            except triobus.BusFull:
                self._withdraw([event])
            except triobus.BusClosed:
                self._withdraw([event])
                return
            await trio.sleep(self.pause * self.chance.random())

    async def run_foreign_thread(self, bus: triobus.EventBus, name: str) -> None:
        """Publish from a thread that Trio knows nothing of."""
        await self.clear_up(bus, name)
        ended = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def publish() -> None:
            try:
                while self.is_open:
                    self._publish_in_thread(bus, name, self._ticks(name, 1)[0])
                    pausing.wait(self.pause)
            except (triobus.BusClosed, triobus.OutcomeUnknown):
                pass
            finally:
                token.run_sync_soon(ended.set)

        pausing = threading.Event()
        thread = threading.Thread(target=publish, name=f"soak {name}")
        thread.start()
        try:
            await ended.wait()
        finally:
            pausing.set()
            with trio.CancelScope(shield=True):
                await ended.wait()
            thread.join()

    async def run_guests(self) -> None:
        """Subscribe and unsubscribe, again and again, and fail now and then."""

        async def receive(event: triobus.DomainEvent) -> None:
            await trio.sleep(0.002 * self.chance.random())
            if self.chance.random() < 0.01:
                raise Planned(str(event))

        for visit in itertools.count():
            if not self.is_open:
                return
            subscription = self._guests.subscribe(
                self.chance.choice([triobus.DomainEvent, Ticked, (Ticked, Pinged)]),
                receive,
                name=f"guest {visit % 3}",
                retry=triobus.Retry(attempts=2, delay=0.002),
                where=self.chance.choice([None, lambda event: event.number % 2]),
                timeout=self.chance.choice([None, 0.01]),
                hold=self.chance.random() < 0.3,
            )
            await trio.sleep(0.05 * self.chance.random())
            subscription.unsubscribe()

    async def run_listeners(self, bus: triobus.EventBus) -> None:
        """Listen for a while, now quickly and now too slowly, and come again."""
        while self.is_open:
            last: dict[str, int] = {}
            pause = self.chance.choice((0, 0, 0.003))
            with trio.move_on_after(0.2 * self.chance.random()):
                async with bus.listen(Ticked, buffer=20) as events:
                    async for event in events:
                        self.heard += 1
                        if event.number <= last.get(event.key, 0):
                            self.breaches.note(f"a listener got {event} late", reordered=1)
                        last[event.key] = event.number
                        await trio.sleep(pause)

    async def run_waiters(self, bus: triobus.EventBus) -> None:
        """Wait for single events, not always for long enough; look at the bus meanwhile."""
        while self.is_open:
            with trio.move_on_after(0.05):
                await bus.wait_for(Ticked, where=lambda event: event.number % 17 == 0)
            bus.health()
            statistics = bus.statistics()
            if statistics.handled != sum(group.handled for group in statistics.groups.values()):
                self.breaches.note(f"the statistics do not add up: {statistics}")
            await trio.sleep(0.02)

    # Dead letters

    async def run_letters(self, bus: triobus.EventBus) -> None:
        """Replay and discard dead letters as they come."""
        while self.is_open:
            await self.treat_letters(bus)
            await trio.sleep(0.05)

    async def treat_letters(self, bus: triobus.EventBus) -> int:
        """Replay or discard some dead letters, and return how many there were."""
        found = await bus.dead_letters.list(limit=200)
        guests = [letter for letter in found if letter.group == "guests"]
        mine = [letter for letter in found if letter.group not in ("guests", "held")]
        again = [letter for letter in mine if letter.attempts <= 3 and self.chance.random() < 0.7]
        await self._replay(bus, [letter for letter in found if letter.group == "held"])
        await self._replay(bus, again)
        await self._discard(bus, [letter for letter in mine if letter not in again])
        if self.chance.random() < 0.3:
            with suppress(triobus.UnknownSubscription):  # a guest that has gone
                await self._replay(bus, guests)
        else:
            await self._discard(bus, guests)
        return len(found)

    async def _replay(self, bus: triobus.EventBus, letters: Sequence[triobus.DeadLetter]) -> None:
        for letter in letters:
            book = self.book(letter.group, letter.subscription)
            if book is not None:
                book.replaying.add(_identity(letter))
        self.letters_replayed += await bus.dead_letters.replay([letter.id for letter in letters])

    async def _discard(self, bus: triobus.EventBus, letters: Sequence[triobus.DeadLetter]) -> None:
        for letter in letters:
            book = self.book(letter.group, letter.subscription)
            if book is not None:
                book.begin_discard(_identity(letter))
            self.letters_discarded += await bus.dead_letters.discard(letter.id)
            if book is not None:
                book.end_discard(_identity(letter))


async def _until_closed(run: Callable[..., Awaitable[None]], *args: object) -> None:
    # Both of the bus and of its store; and whoever is published to in a crash cannot know.
    with suppress(trio.ClosedResourceError, triobus.OutcomeUnknown):
        await run(*args)


def _identity(letter: triobus.DeadLetter) -> Identity:
    assert isinstance(letter.event, Ticked | Pinged)
    return identity(letter.event)
