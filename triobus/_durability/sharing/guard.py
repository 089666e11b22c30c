"""A guard around the handlers of a shared group: the loss of a segment cancels what runs of it."""

from collections.abc import Callable
from typing import Any

import attrs
import trio

from triobus._durability.sharing.share import Part
from triobus._events.causes import calling_bundle
from triobus._groups.handlers import PASSED_OVER
from triobus._groups.subscriptions import Subscription
from triobus.stores._sharing import SegmentLost


@attrs.define(eq=False)
class Guard:
    """Puts itself around the handlers of one group."""

    _on_lost: Callable[[Part], None]
    """Called when a commit says that a segment is another node's, unless that is known."""
    _guarded: dict[Subscription, Subscription] = attrs.field(factory=dict, init=False)

    def around(self, plan: tuple[Subscription, ...]) -> tuple[Subscription, ...]:
        """Return the same plan, guarded."""
        return tuple(map(self._guard, plan))

    def refresh(self) -> None:
        """See which subscriptions have ended."""
        for subscription, guarded in self._guarded.items():
            guarded.is_active = subscription.is_active
            guarded._is_plain = subscription._is_plain
        self._guarded = {own: guarded for own, guarded in self._guarded.items() if own.is_active}

    def _guard(self, subscription: Subscription) -> Subscription:
        guarded = self._guarded.get(subscription)
        if guarded is None:

            async def handle(event: object) -> object:
                return await self._handle(subscription, event)

            guarded = attrs.evolve(subscription, invoke=handle, is_transactional=False)
            guarded._is_plain = subscription._is_plain
            self._guarded[subscription] = guarded
        return guarded

    async def _handle(self, subscription: Subscription, event: object) -> object:
        """Call a handler, unless its segment is lost; what comes of it counts only if not."""
        part: Part = calling_bundle()[0].part
        if part.is_lost:
            await trio.lowlevel.checkpoint()
            return PASSED_OVER
        result: Any = PASSED_OVER
        try:
            with trio.CancelScope() as scope:
                part.cancels.add(scope.cancel)
                result = await subscription._invoke(event)
        except SegmentLost:
            self._on_lost(part)
        except Exception:
            if not part.is_lost:
                raise
        finally:
            part.cancels.discard(scope.cancel)
        return PASSED_OVER if part.is_lost else result
