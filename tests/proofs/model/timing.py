"""What a program does with time and with groups: publish for later, take back, pause, reset."""

from typing import Any

import trio

from tests.proofs.model.programs import Pause, PublishLater
from triobus import BusClosed, OutcomeUnknown, StoreError


async def publish_later(player: Any, operation: PublishLater) -> None:
    """Publish an event that is due after some time."""
    event = player.drafted(operation.draft)
    await player.call(
        operation.is_aside, operation.cancelled_after, _publish, player, event, operation.delay
    )


async def _publish(player: Any, event: Any, delay: float) -> None:
    promises, number = player.promises, event.number
    if not delay:  # it is due at once, and published as any other
        return await player.publish([event], "at once")
    promises.publishing_later(player.fact_of(event), trio.current_time() + delay)
    try:
        published = await player.bus.publish(event, delay=delay)
    except BaseException as error:
        is_certain = not isinstance(error, OutcomeUnknown)
        promises.not_published_later(number, is_certain=is_certain)
        raise
    promises.published_later(number, published.position, trio.current_time())
    return None


async def withdraw(player: Any, choice: int) -> None:
    """Take an event back, whether it was published for later or not."""
    events = list(player.events.values())
    if not events:
        return
    event = events[-1 - choice % len(events)]
    was_waiting = player.promises.schedule.is_waiting(event.number)
    try:
        is_told = await player.bus.cancel_scheduled(event.event_id)
    except BaseException:
        player.promises.perhaps_withdrawn(event.number)
        raise
    player.promises.withdrawn(
        event.number, trio.current_time(), was_waiting=was_waiting, is_told=is_told
    )


def next_to_pause(player: Any, operation: Pause) -> str | None:
    """Return the name of the group to be paused, None if another task does that already."""
    names = sorted(name for name, group in player.promises.groups.items() if group.is_active)
    name = names[operation.choice % len(names)] if names else None
    return None if name in player.pauses else name


async def pause(player: Any, name: str, operation: Pause) -> None:
    """Pause a group for some time."""
    group, promises = player.bus._life.shells[name].group, player.promises
    promises.pausing(name)
    try:
        await group.pause()
        promises.paused(name)
        await trio.sleep(operation.seconds)
        if operation.place is not None and player.bus.store is not None:
            await _reset(player, group, operation.place)
        await trio.sleep(operation.seconds)
    finally:
        if name in promises.groups and player.bus._life.shells[name].group is group:
            promises.resuming(name, trio.current_time())
        with trio.CancelScope(shield=True):
            await group.resume()
        player.pauses.discard(name)


async def _reset(player: Any, group: Any, place: int) -> None:
    """Send a group to one of the positions that are known."""
    promises, name = player.promises, group.name
    known = [0, *(k.position for k in promises.known.values() if k.position is not None)]
    offset = sorted(known)[place % len(known)]
    promises.resetting(name)
    try:
        await group.reset(offset)
    except trio.Cancelled:
        promises.not_reset(name)
        raise
    except (BusClosed, StoreError):
        raise  # a crash has cut it off, and nobody knows
    promises.was_reset(name, offset)
