"""Who is there while a bus of a soak lives: publishers, listeners and guests."""

import itertools
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from itertools import compress
from operator import not_

import attrs
import trio

import triobus
from tests.proofs.torture.books import Identity, Pinged, Ticked, identity
from tests.proofs.torture.load import Load, Planned


@attrs.frozen(eq=False)
class Crowd:
    """Everybody who uses one bus besides its handlers."""

    load: Load
    bus: triobus.EventBus

    def start(self, nursery: trio.Nursery) -> None:
        """Start everybody; they leave when the bus is closed, or `is_open` is false."""
        self.load.is_open = True
        publishers = ["one", "two", "three"] if self.load.is_durable else ["one", "two"]
        for name in publishers:
            nursery.start_soon(_until_closed, self.run_publisher, name)
        for name in ("foreign", "strange"):
            nursery.start_soon(_until_closed, self.run_foreign_thread, name)
        for name in ("brisk", "plain"):  # handlers, which publish too
            nursery.start_soon(_until_closed, self.clear_up, name)
        if not self.load.is_durable:
            nursery.start_soon(_until_closed, self.run_hurried_publisher, "hurried")
        nursery.start_soon(_until_closed, self.run_guests)
        for run in (self.run_listeners, self.run_listeners, self.run_waiters, self.run_letters):
            nursery.start_soon(_until_closed, run)

    async def clear_up(self, publisher: str) -> None:
        """Publish again what the store may or may not have."""
        while events := self.load.unsure.get(publisher, []):
            await self.bus.publish_many(events)
            del self.load.unsure[publisher]

    async def run_publisher(self, name: str) -> None:
        """Publish, now one and now many, until the bus is closed."""
        await self.clear_up(name)
        while self.load.is_open:
            count = self.load.chance.choice((1, 1, 2, 10))
            events = self.load.ticks(name, count)
            if count > 2:  # a batch of two types
                events.insert(self.load.chance.randrange(count), self.load.ping())
            await self.load.publish(self.bus, name, events, wait=self.load.chance.random() < 0.1)
            await trio.sleep(self.load.pause * 2 * self.load.chance.random())
            if self.load.is_behind:
                await trio.sleep(0.2)

    async def run_hurried_publisher(self, name: str) -> None:
        """Publish without waiting, as is possible in memory."""
        while self.load.is_open:
            (event,) = self.load.ticks(name, 1)
            self.load.expect([event])
            try:
                self.bus.publish_nowait(event)
            except triobus.BusFull:
                self.load.withdraw([event])
            except triobus.BusClosed:
                self.load.withdraw([event])
                return
            await trio.sleep(self.load.pause * self.load.chance.random())

    async def run_foreign_thread(self, name: str) -> None:
        """Publish from a thread that Trio knows nothing of."""
        await self.clear_up(name)
        ended = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def publish() -> None:
            try:
                while self.load.is_open:
                    self.load.publish_in_thread(self.bus, name, self.load.ticks(name, 1)[0])
                    pausing.wait(self.load.pause)
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
            await trio.sleep(0.002 * self.load.chance.random())
            if self.load.chance.random() < 0.01:
                raise Planned(str(event))

        for visit in itertools.count():
            if not self.load.is_open:
                return
            subscription = self.load.guests.subscribe(
                self.load.chance.choice([triobus.DomainEvent, Ticked, (Ticked, Pinged)]),
                receive,
                name=f"guest {visit % 3}",
                retry=triobus.Retry(attempts=2, delay=0.002),
                where=self.load.chance.choice([None, lambda event: event.number % 2]),
                timeout=self.load.chance.choice([None, 0.01]),
                hold=self.load.chance.random() < 0.3,
            )
            await trio.sleep(0.05 * self.load.chance.random())
            subscription.unsubscribe()

    async def run_listeners(self) -> None:
        """Listen for a while, now quickly and now too slowly, and come again."""
        while self.load.is_open:
            last: dict[str, int] = {}
            pause = self.load.chance.choice((0, 0, 0.003))
            with trio.move_on_after(0.2 * self.load.chance.random()):
                async with self.bus.listen(Ticked, buffer=20) as events:
                    async for event in events:
                        if event.number <= last.get(event.key, 0):
                            self.load.breaches.note(f"a listener got {event} late", reordered=1)
                        last[event.key] = event.number
                        await trio.sleep(pause)

    async def run_waiters(self) -> None:
        """Wait for single events, not always for long enough; look at the bus meanwhile."""
        while self.load.is_open:
            with trio.move_on_after(0.05):
                await self.bus.wait_for(Ticked, where=lambda event: event.number % 17 == 0)
            self.bus.health()
            statistics = self.bus.statistics()
            if statistics.handled != sum(group.handled for group in statistics.groups.values()):
                self.load.breaches.note(f"the statistics do not add up: {statistics}")
            await trio.sleep(0.02)

    # Dead letters

    async def run_letters(self) -> None:
        """Replay and discard dead letters as they come."""
        while self.load.is_open:
            await self.treat_letters()
            await trio.sleep(0.05)

    async def treat_letters(self) -> int:
        """Replay or discard some dead letters, and return how many there were."""
        found = await self.bus.dead_letters.list(limit=200)
        guests = [letter for letter in found if letter.group == "guests"]
        mine = [letter for letter in found if letter.group not in ("guests", "held")]
        is_again = [letter.attempts <= 3 and self.load.chance.random() < 0.7 for letter in mine]
        await self._replay([letter for letter in found if letter.group == "held"])
        await self._replay([*compress(mine, is_again)])
        await self._discard([*compress(mine, map(not_, is_again))])
        if self.load.chance.random() < 0.3:
            with suppress(triobus.UnknownSubscription):  # a guest that has gone
                await self._replay(guests)
        else:
            await self._discard(guests)
        return len(found)

    async def _replay(self, letters: Sequence[triobus.DeadLetter]) -> None:
        for letter in letters:
            book = self.load.book(letter.group, letter.subscription)
            if book is not None:
                book.replaying.add(_identity(letter))
        await self.bus.dead_letters.replay([letter.id for letter in letters])

    async def _discard(self, letters: Sequence[triobus.DeadLetter]) -> None:
        for letter in letters:
            book = self.load.book(letter.group, letter.subscription)
            if book is not None:
                book.begin_discard(_identity(letter))
            await self.bus.dead_letters.discard(letter.id)
            if book is not None:
                book.end_discard(_identity(letter))


async def _until_closed(run: Callable[..., Awaitable[None]], *args: object) -> None:
    # Both of the bus and of its store; and whoever is published to in a crash cannot know.
    with suppress(trio.ClosedResourceError, triobus.OutcomeUnknown):
        await run(*args)


def _identity(letter: triobus.DeadLetter) -> Identity:
    assert isinstance(letter.event, Ticked | Pinged)
    return identity(letter.event)
