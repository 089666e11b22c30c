"""The use that one bus makes of a store that it shares with others."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from triobus._durability.catch_up import CatchUp
from triobus._durability.recorder import Recorder
from triobus._durability.schedule import StoredSchedule
from triobus._durability.sharing.catch_up import SharedCatchUp
from triobus._durability.sharing.dead_letters import SharedDeadLetters
from triobus._durability.sharing.hand_over import SharedHandOver
from triobus._durability.sharing.membership import Membership
from triobus._durability.sharing.share import Part
from triobus._durability.sharing.telling import Telling
from triobus._durability.suspects import Suspects
from triobus._errors import BusClosed, StoreError
from triobus._events import DomainEvent
from triobus._groups.subscriptions import GroupOptions
from triobus.stores._commits import Submission
from triobus.stores._shared import Joined, News, Recorded, SharedEventStore
from triobus.stores._sharing import SegmentKey
from triobus.stores._values import Changes, SegmentChange

logger = logging.getLogger("triobus")

_PAUSE = 1
"""Seconds after which the store is asked again that did not answer."""


@attrs.define(eq=False)
class SharedRecorder(Recorder):
    """The use that one bus makes of a shared store, as a node of it."""

    _shared: SharedEventStore = attrs.field(kw_only=True)
    """The store itself."""
    _count: Callable[[Sequence[DomainEvent], int], None] = attrs.field(kw_only=True)
    _offer: Callable[[DomainEvent, int], None] = attrs.field(kw_only=True)
    _has_listeners: Callable[[], bool] = attrs.field(kw_only=True)
    letters: SharedDeadLetters = attrs.field(init=False)
    membership: Membership = attrs.field(init=False)
    catch_ups: dict[str, SharedCatchUp] = attrs.field(factory=dict, init=False)  # type: ignore[assignment]  # all are
    _hand_over: SharedHandOver = attrs.field(init=False)  # type: ignore[assignment]  # it does what that one does
    _in_commit: dict[SegmentKey, Part] = attrs.field(factory=dict, init=False)
    """The parts whose changes are on their way."""

    def __attrs_post_init__(self) -> None:
        self.letters = SharedDeadLetters(
            self.store,
            self.on_change,
            self.flush_letters,
            shared=self._shared,
            part_at=self._part_at,
        )
        self.schedule = StoredSchedule(self.store)
        telling = Telling(self.store, self._offer, self._has_listeners)
        self._hand_over = SharedHandOver(self.store, self._count, telling, self.catch_ups)
        self.membership = Membership(self._shared, self.catch_ups, self._on_news, self._flush_parts)

    # Starting and stopping

    async def attach(self) -> None:
        """Open the store, become a node of it and take a share. Raises `StoreError`."""
        await self.store.__aenter__()
        try:
            async with self._commits.paused():
                self._begin(await self.membership.join())
            await self.membership.look()
        except BaseException:
            self.is_attached = False
            with trio.CancelScope(shield=True):
                await self._commits.release()
                await self.membership.leave()
                await self.store.__aexit__(None, None, None)
            raise

    @enable_ki_protection
    def _begin(self, joined: Joined) -> None:
        """Go on from where the log ends."""
        self.is_attached = True
        if self.is_halted:
            self._commits.halt()
        self._hand_over.begin(joined.last)
        self.letters.restore(joined.letters)
        self.schedule.restore(joined.scheduled, joined.next_due)
        for catch_up in self.catch_ups.values():
            self._take_up(catch_up)
        self._commits.serve(self)

    async def detach(self) -> None:
        """Record what is finished, let everything go and close the store. Not to be cancelled."""
        if not self.is_attached:
            return
        for catch_up in self.catch_ups.values():
            for part in catch_up.share.parts.values():
                part.progress.absorb()
        self._is_changed = True
        self.is_attached = self.letters.is_current = False
        with trio.CancelScope(shield=True):
            try:
                await self._commits.release()
            finally:
                if self.is_halted:
                    await self.store._vanish()
                else:
                    try:
                        await self.membership.leave()
                    finally:
                        await self.store.__aexit__(None, None, None)

    def add(self, options: GroupOptions) -> SharedCatchUp:
        """Return what brings the store's log to one more group."""
        catch_up = SharedCatchUp(
            options,
            self.store,
            self.on_change,
            self._check_attached,
            self._on_own_change,
            self.when_recorded,
            shared=self._shared,
            membership=self.membership,
            suspects_of=self._suspects_of,
            letters=self.letters,
        )
        self.catch_ups[options.group.name] = catch_up
        if self.is_attached:
            self._take_up(catch_up)
        return catch_up

    def _suspects_of(self, catch_up: CatchUp) -> Suspects:
        self._last_before = self._hand_over.last
        return super()._suspects_of(catch_up)

    def _take_up(self, catch_up: Any) -> None:
        catch_up.last = self._hand_over.reach
        self.on_subscriptions(catch_up)

    @enable_ki_protection
    async def run(self) -> None:
        """Store what is published, and be a node, until it is detached."""
        with trio.CancelScope(shield=True):  # the last commit comes after everything else
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.membership.run)
                nursery.start_soon(self._keep_on, self._hand_over.telling.run)
                nursery.start_soon(self._keep_on, partial(self.letters.attend, nursery))
                await self._commits.run()
                nursery.cancel_scope.cancel()

    def reasons(self) -> Iterable[str]:
        """Yield a sentence for everything that is not as it should be."""
        yield from super().reasons()
        if self.is_attached:
            yield from self.membership.reasons()

    async def _keep_on(self, run: Callable[[], Awaitable[None]]) -> None:
        """Run something again and again, for the store may not answer now and then."""
        while True:
            try:
                await run()
            except BusClosed:
                return
            except StoreError as error:
                logger.warning("the log could not be read, and will be: %s", error)
                await trio.sleep(_PAUSE)

    def halt(self) -> None:
        """Store nothing from here on, and be to the others as a killed process is."""
        super().halt()
        self._shared._on_halt()
        self.membership.stop()

    def _on_news(self, news: News) -> None:
        """The store has news."""
        if not self.is_attached or self.is_halted:
            return
        self._hand_over.learn(news.head)
        if news.due is not None:
            self.schedule.on_news(news.due)
        if news.is_of_shares:
            self.membership.on_news()
        if news.is_of_letters:
            self.letters.on_news()

    async def _flush_parts(self) -> None:
        """Wait until everything that the parts have come to is recorded."""
        self._is_changed = True
        await self.flush_now()

    def _part_at(self, group: str, position: int) -> Part | None:
        return self.catch_ups[group].share.open.get(position)

    # What the commits ask

    def _collected(self) -> Changes:
        self._in_commit = {}
        own, others = self.letters.take_changes()
        parts = {part for catch_up in self.catch_ups.values() for part in catch_up.share.changed}
        segments = {}
        for part in sorted(parts | own.keys(), key=lambda part: part.key):
            self._in_commit[part.key] = part
            change = part.acknowledgements.take_change()
            segments[part.key] = SegmentChange(part.fence, change, own.get(part, {}))
        return Changes({}, others, segments)

    def give_back(
        self, changes: Changes, submissions: Sequence[Submission], error: BaseException
    ) -> None:
        """These changes are not stored, because of an error."""
        super().give_back(Changes({}, changes.letters, changes.segments), submissions, error)
        for key, change in changes.segments.items():
            part = self._in_commit[key]
            part.acknowledgements.give_back(change.change)
            self.letters.give_back_of(part, change.letters)

    def committed(
        self,
        changes: Changes,
        submissions: Sequence[Submission],
        recorded: Recorded | None = None,
    ) -> None:
        """Progress is stored, but for what is lost, and events are in the log."""
        recorded = recorded or Recorded()
        for key, change in changes.segments.items():
            part = self._in_commit[key]
            if key in recorded.lost:
                self.catch_ups[key.group].lose(part)
                self.membership.ring()
            else:
                part.progress.on_stored(change.change.progress)
        self.letters.stored(recorded.letters)
        super().committed(Changes(segments=changes.segments), submissions)
