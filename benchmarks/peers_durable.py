"""Other durable queues and event stores on the same work, as their READMEs recommend.

Each event is stored, fetched, given to a handler and acknowledged, one after the other in one
thread: none of them commits the events of several publishers together, so that more threads would
only wait for one another.
"""

import asyncio
import json
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

Adapter = Callable[[Path, int], None]


def _handle(event: Any) -> None:
    """Do nothing."""


def _data(count: int) -> Iterable[dict[str, Any]]:
    return ({"key": f"aggregate-{number % 100}", "number": number} for number in range(count))


def litequeue(path: Path, count: int, *, is_synced: bool = False) -> None:
    """Put each, then pop each and mark it as done."""
    from litequeue import LiteQueue

    queue = LiteQueue(str(path))
    if is_synced:
        queue.conn.execute("PRAGMA synchronous = FULL")
    for data in _data(count):
        queue.put(json.dumps(data))
    for _ in range(count):
        message = queue.pop()
        _handle(json.loads(message.data))
        # From 0.14 on, which needs Python 3.12, whoever is done has to show the claim.
        claim = {"claim_id": message.claim_id} if hasattr(message, "claim_id") else {}
        queue.done(message.message_id, **claim)


def persist_queue(path: Path, count: int) -> None:
    """Put each, then get each and acknowledge it."""
    from persistqueue import SQLiteAckQueue

    queue = SQLiteAckQueue(str(path))
    for data in _data(count):
        queue.put(data)
    for _ in range(count):
        item = queue.get()
        _handle(item)
        queue.ack(item)
    queue.close()


def huey(path: Path, count: int, *, is_synced: bool = False) -> None:
    """Call a task for each, then let the consumer's loop execute each."""
    from huey import SqliteHuey

    huey = SqliteHuey(filename=str(path), fsync=is_synced)
    handle = huey.task()(_handle)
    for data in _data(count):
        handle(data)
    for _ in range(count):
        huey.execute(huey.dequeue())
    huey.storage.close()


@cache  # the package refuses a second class of the same name
def _account_class() -> Any:
    from eventsourcing.domain import Aggregate, event

    class Account(Aggregate):  # type: ignore[misc]  # its types are not looked at
        @event("Booked")  # type: ignore[untyped-decorator]  # nor here
        def book(self, number: int) -> None:
            self.number = number

    return Account


def eventsourcing(path: Path, count: int) -> None:
    """Save an event of an aggregate at a time, then follow the log and track each position."""
    from eventsourcing.application import Application
    from eventsourcing.persistence import Tracking

    account_class = _account_class()
    environment = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path)}
    application = Application[UUID](env=environment)
    accounts = [account_class() for _ in range(min(100, count // 2))]
    for account in accounts:
        application.save(account)
    for number in range(count - len(accounts)):
        account = accounts[number % len(accounts)]
        account.book(number)
        application.save(account)
    view = application.factory.tracking_recorder()
    for first in range(1, count + 1, 10):
        for notification in application.notification_log.select(first, limit=10):
            _handle(application.mapper.to_domain_event(notification))
            view.insert_tracking(Tracking(application.name, notification.id))
    application.close()


@cache  # the package refuses a second class of the same name
def _booked_class() -> Any:
    from eventsource import DomainEvent, register_event

    @register_event
    class Booked(DomainEvent):  # type: ignore[misc]  # its types are not looked at
        aggregate_type: str = "Account"
        number: int

    return Booked


def eventsource_py(path: Path, count: int) -> None:
    """Append each to its stream, then publish it to the handlers of a bus in memory."""
    from eventsource import ExpectedVersion, InMemoryEventBus, SQLiteEventStore, StreamId

    booked_class = _booked_class()

    class Handler:
        async def handle(self, event: Any) -> None:
            _handle(event)

    async def run() -> None:
        store = SQLiteEventStore(str(path))
        bus = InMemoryEventBus()
        bus.subscribe(booked_class, Handler())
        accounts = [uuid4() for _ in range(100)]
        for number in range(count):
            account = accounts[number % 100]
            booked = booked_class(
                aggregate_id=account, aggregate_version=number // 100 + 1, number=number
            )
            await store.append(StreamId(account, "Account"), [booked], ExpectedVersion.any_())
            await bus.publish([booked])
        await store.close()

    asyncio.run(run())


DURABLE: dict[str, tuple[Adapter, str]] = {
    "litequeue": (litequeue, "no sync to disk, no order, no groups"),
    "litequeue, synced": (partial(litequeue, is_synced=True), "no order, no groups"),
    "persist-queue": (persist_queue, "no order, no groups"),
    "huey": (huey, "no sync to disk, no order, no groups; a crash loses what is taken"),
    "huey, synced": (
        partial(huey, is_synced=True),
        "no order, no groups; a crash loses what is taken",
    ),
    "eventsourcing": (eventsourcing, "no retries, no dead letters"),
    "eventsource-py": (eventsource_py, "no acknowledgement by its bus"),
}
"""The adapters, and what each does not promise that triobus does, by the name of the package."""
