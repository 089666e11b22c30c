"""A bus as a node of its store: it renews its lease, takes its share and lets go of the rest.

1. The lease is renewed at every third of it. By the node's own clock it is over a little earlier
   than by the store's, counted from before the store was asked; from then on the node does nothing.
2. A node that is dead, or might be, joins again as another one, with nothing.
3. What has no owner is taken and what is too much let go of whenever the store has news of that.
4. What cannot be known, because the store did not answer, is settled by leaving and joining again.
"""

import logging
import os
import platform
from collections.abc import Awaitable, Callable, Iterable, Mapping

import attrs
import trio

from triobus._durability.sharing.catch_up import SharedCatchUp
from triobus._durability.sharing.share import Part
from triobus._errors import BusClosed, InvalidOption, StoreError
from triobus.stores._shared import Joined, News, SharedEventStore

logger = logging.getLogger("triobus")

_OWN_PART = 0.9
"""How much of its lease a node uses."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1, 30
"""Seconds after which the store is asked again when it did not answer."""


@attrs.define(eq=False)
class Membership:
    """What one life of a bus is among the nodes of its store."""

    _store: SharedEventStore
    _catch_ups: Mapping[str, SharedCatchUp]
    _on_news: Callable[[News], None]
    _flush: Callable[[], Awaitable[None]]
    """Waits until what is finished is recorded. Raises `StoreError` and `BusClosed`."""
    node: int = attrs.field(default=0, init=False)
    """Its number in the store."""
    failure: Exception | None = attrs.field(default=None, init=False)
    """Why it could not look at its share the last time, if it could not."""
    _lease: float = attrs.field(default=0, init=False)
    _renewed_at: float = attrs.field(default=0, init=False)
    """When the store was asked to renew the lease, the last time that it did."""
    news: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when there is news of shares; then another one is in its place."""
    is_member: bool = attrs.field(default=False, init=False)
    """Whether it has joined, and has neither left nor been stopped."""
    _to_pause: set[str] = attrs.field(factory=set, init=False)
    """The groups that are to be paused when they are known to the store."""
    _is_dead: bool = attrs.field(default=False, init=False)
    """Whether it has to join again."""
    _is_rung: bool = attrs.field(default=False, init=False)
    _rung: trio.Event = attrs.field(factory=trio.Event, init=False)
    _revived: trio.Event = attrs.field(factory=trio.Event, init=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    # Being a node

    async def join(self) -> Joined:
        """Become a node, which has nothing yet."""
        asked_at = trio.current_time()
        joined = await self._store._join(f"{platform.node()}/{os.getpid()}", self._on_news)
        self.node, self._lease, self._renewed_at = joined.node, joined.lease, asked_at
        self._is_dead, self.is_member = False, True
        self._to_pause = {name for name, each in self._catch_ups.items() if each.group._is_paused}
        self._revived.set()
        return joined

    async def leave(self) -> None:
        """Let everything go, so that others take it at once."""
        self.is_member = False
        self.on_news()
        await self._store._leave(self.node)

    def on_news(self) -> None:
        """There is news of shares."""
        self.news.set()
        self.news = trio.Event()
        self.ring()

    def ring(self) -> None:
        """Look at the share, soon."""
        self._is_rung = True
        self._rung.set()

    def die(self, why: str) -> None:
        """Do nothing more as this node."""
        if not self._is_dead:
            self._is_dead = True
            self._revived = trio.Event()
            logger.warning("this bus is not a node of %r any more: %s", self._store, why)
            for catch_up in self._catch_ups.values():
                catch_up.lose_all()
            self.ring()

    def stop(self) -> None:
        """Do nothing more, as if the process were killed."""
        self.is_member = False
        self.on_news()
        self._scope.cancel()

    def reasons(self) -> Iterable[str]:
        """Yield a sentence for everything that is not as it should be."""
        if self._is_dead:
            yield "the bus is no node of its store now: its lease was not renewed in time."
        if self.failure is not None:
            yield f"the bus could not look at its share, and tries again: {self.failure}."
        for name, catch_up in self._catch_ups.items():
            if catch_up.is_paused_elsewhere:
                yield (
                    f"group {name!r} is paused by another bus of its store: await group.resume() "
                    "on any of them to let it go on."
                )
            if catch_up.is_outdated:
                yield (
                    f"group {name!r} has other subscriptions on newer buses of its store, which "
                    "handle its events: start this program anew in their version."
                )

    async def run(self) -> None:
        """Renew the lease and keep to the share, until it is cancelled or stopped."""
        with self._scope:
            await self._run()

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_alive)
            nursery.start_soon(self._watch)
            nursery.start_soon(self._balance)

    async def _keep_alive(self) -> None:
        """Renew the lease at every third of it."""
        while True:
            await trio.sleep_until(self._renewed_at + self._lease / 3)
            node, asked_at = self.node, trio.current_time()
            try:
                head = await self._store._renew(node)
            except StoreError as error:
                logger.warning("the lease of this bus could not be renewed: %s", error)
                await trio.sleep(self._lease / 10)
                continue
            if self._is_dead or node != self.node:
                await self._revived.wait()
            elif head is None:
                self.die("its lease was over, and other nodes have its share")
            else:
                self._renewed_at = asked_at
                self._on_news(News(head))

    async def _watch(self) -> None:
        """End what the node does when its lease is over by its own clock."""
        while True:
            await self._revived.wait()
            over_at = self._renewed_at + _OWN_PART * self._lease
            if trio.current_time() >= over_at:
                await self._store._while_stopped()
                self.die("its lease could not be renewed in time")
            else:
                await trio.sleep_until(over_at)

    # Its share

    async def _balance(self) -> None:
        """Look at the share whenever there is news of that."""
        pause = _FIRST_PAUSE
        while True:
            if not self._is_rung:
                self._rung = trio.Event()
                await self._rung.wait()
            self._is_rung = False
            try:
                await self.look()
                self.failure, pause = None, _FIRST_PAUSE
            except (StoreError, InvalidOption) as error:
                self.failure = error
                logger.warning("this bus could not look at its share of the groups: %s", error)
                self.ring()
                await trio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            except BusClosed:
                return

    async def look(self) -> None:
        """Take what has no owner and is the node's share, and let go of what is more than that."""
        await self._release()
        if self._is_dead:
            await self._store._leave(self.node)
            self._on_news(News((await self.join()).last))
        for catch_up in [*self._catch_ups.values()]:
            if not catch_up.is_active:
                catch_up.let_go(catch_up.share.taking)
            elif not await self._take(catch_up):
                return
        await self._release()

    async def _take(self, catch_up: SharedCatchUp) -> bool:
        """Take and let go of segments of one group; False if the node is dead."""
        node, was_paused = self.node, catch_up.is_paused
        try:
            taken = await self._store._take(node, catch_up.claim)
        except StoreError:
            self.die("it does not know what the store has given it")
            raise
        if taken is None:
            self.die("its lease was over when it looked for its share")
        if taken is None or self._is_dead or node != self.node:
            return False
        self._on_news(News(taken.last))
        catch_up.is_outdated = not (taken.share or taken.is_paused)
        catch_up.know_paused(is_paused=taken.is_paused, was_paused=was_paused)
        if catch_up.group.name in self._to_pause:
            self._to_pause.discard(catch_up.group.name)
            await catch_up.pause_again()
        if taken.segments:
            catch_up.take(taken.segments)
        catch_up.let_go(catch_up.share.surplus(taken.share))
        return True

    async def _release(self) -> None:
        """Give back what is to go and at rest, once that is recorded."""
        resting = [*self._resting()]
        if not resting:
            return
        for _, part in resting:
            part.progress.absorb()
        await self._flush()
        gone = [
            (catch_up, part)
            for catch_up, part in resting
            if not part.is_lost and not part.acknowledgements.is_changed
        ]
        for catch_up, part in gone:
            catch_up.share.remove(part)
        try:
            await self._store._release({part.key: part.fence for _, part in gone})
        except StoreError:
            self.die("it does not know what it has let go of")
            raise
        if len(gone) < len(resting):
            self.ring()

    def _resting(self) -> list[tuple[SharedCatchUp, Part]]:
        return [
            (catch_up, part)
            for catch_up in self._catch_ups.values()
            for part in catch_up.share.parts.values()
            if part.is_at_rest
        ]
