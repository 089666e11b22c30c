"""What type checkers have to accept, each of them under its strictest rules. It is never run."""

from functools import partial
from typing import assert_type

from tests.unit.types.events import (
    Closed,
    Found,
    Lost,
    Ordered,
    OrderedTwice,
    Paid,
    Returned,
    Shipped,
)
from triobus import (
    BatchHandlers,
    DomainEvent,
    EventBus,
    Handlers,
    Listener,
    Retry,
    Subscription,
    Transaction,
)

bus = EventBus()
mail = bus.group("mail", workers=2)
handlers = Handlers()
batches = BatchHandlers()


@handlers.subscribe(Ordered, name="declared", hold=True)
async def declared(event: Ordered) -> None: ...


@handlers.subscribe(Ordered, transactional=True)
def declared_transactional(event: Ordered, transaction: Transaction) -> None: ...


@batches.subscribe((Ordered, Paid))
async def declared_batch(events: tuple[Ordered | Paid, ...]) -> None: ...


assert_type(bus.include(handlers, group="mail"), tuple[Subscription, ...])


# Decorators


@bus.subscribe(Ordered)
async def an_async_def(event: Ordered) -> None: ...


@bus.subscribe(Ordered)
def a_plain_def(event: Ordered) -> int:
    return event.quantity


@mail.subscribe(Ordered, name="named", priority=1, retry=Retry(attempts=2), timeout=3, hold=True)
async def with_options(event: Ordered) -> str:
    return event.event_type


@bus.subscribe(Ordered)
async def of_a_base(event: DomainEvent) -> None: ...


@bus.subscribe(OrderedTwice)
async def of_a_base_of_ours(event: Ordered) -> None: ...


@bus.subscribe(DomainEvent)
async def of_everything(event: DomainEvent) -> None: ...


@bus.subscribe((Ordered, Paid))
async def of_two(event: Ordered | Paid) -> None: ...


@bus.subscribe((Ordered, Paid))
async def of_two_by_their_base(event: DomainEvent) -> None: ...


@bus.subscribe(Ordered)
async def of_more_than_it_gets(event: Ordered | Paid) -> None: ...


@bus.subscribe((Ordered, Paid, Shipped))
async def of_three(event: Ordered | Paid | Shipped) -> None: ...


@bus.subscribe((Ordered, Paid, Shipped, Returned, Lost, Found))
async def of_six(event: Ordered | Paid | Shipped | Returned | Lost | Found) -> None: ...


@bus.subscribe((Ordered, Paid, Shipped, Returned, Lost, Found, Closed))
async def of_seven(event: Ordered | Paid | Shipped | Returned | Lost | Found | Closed) -> None: ...


@bus.subscribe(Ordered, where=lambda event: event.quantity > 3)
async def with_where(event: Ordered) -> None: ...


@bus.subscribe((Shipped, Returned), where=lambda event: event.parcel)
async def with_where_of_two(event: Shipped | Returned) -> None: ...


# A decorated function stays a function


async def call_them(event: Ordered) -> None:
    await an_async_def(event)
    assert_type(a_plain_def(event), int)
    assert_type(await with_options(event), str)


# Calls


class AsyncObject:
    async def __call__(self, event: Ordered) -> None: ...

    async def method(self, event: Ordered) -> None: ...

    def plain_method(self, event: Ordered) -> None: ...


async def of_three_arguments(prefix: str, event: Ordered, *, suffix: str = "") -> None: ...


async def of_lost_or_found(event: Lost | Found) -> None: ...


some: tuple[type[DomainEvent], ...] = (Ordered, Paid)

assert_type(bus.subscribe(Ordered, an_async_def), Subscription)
assert_type(mail.subscribe(Ordered, a_plain_def, name="plain"), Subscription)
bus.subscribe(Ordered, AsyncObject())
bus.subscribe(Ordered, AsyncObject().method)
bus.subscribe(Ordered, AsyncObject().plain_method)
bus.subscribe(Ordered, partial(of_three_arguments, "a", suffix="b"))
bus.subscribe(Ordered, lambda event: event.quantity)
bus.subscribe((Lost, Found), lambda event: event.parcel, where=lambda event: event.parcel > "a")
bus.subscribe((Lost, Found), of_lost_or_found)
bus.subscribe((Lost, Found), of_everything, where=None)
bus.subscribe((Ordered, OrderedTwice), a_plain_def)
bus.subscribe((Ordered, Paid, Shipped, Returned, Lost, Found), of_six)
bus.subscribe((Ordered, Paid, Shipped, Returned, Lost, Found, Closed), of_seven)
bus.subscribe(some, of_everything, where=lambda event: event.event_type)
bus.subscribe(some)(of_everything)
bus.subscribe(Ordered, print)


# Listening


async def listen() -> None:
    async with bus.listen(Ordered) as orders:
        assert_type(orders, Listener[Ordered])
        async for order in orders:
            assert_type(order, Ordered)
    async with bus.listen(Ordered, Paid, buffer=5) as either:
        async for event in either:
            assert_type(event, Ordered | Paid)
    async with bus.listen(Ordered, Paid, Shipped, Returned, Lost, Found) as six:
        async for one in six:
            assert_type(one, Ordered | Paid | Shipped | Returned | Lost | Found)
    async with bus.listen() as all_:
        async for event_ in all_:
            assert_type(event_, DomainEvent)


async def wait() -> None:
    assert_type(await bus.wait_for(Ordered), Ordered)
    assert_type(await bus.wait_for(Ordered, lambda event: event.quantity > 3), Ordered)
    assert_type(await bus.wait_for(Ordered, where=lambda event: event.quantity > 3), Ordered)
    assert_type(await bus.wait_for((Ordered, Paid)), Ordered | Paid)
    assert_type(await bus.wait_for((Lost, Found), lambda event: bool(event.parcel)), Lost | Found)
    assert_type(await bus.wait_for(some), DomainEvent)


def keeps_books(event: Ordered, transaction: Transaction) -> int:
    return event.quantity


def keeps_both(event: Lost | Found, transaction: Transaction) -> None: ...


assert_type(bus.subscribe(Ordered, keeps_books, transactional=True), Subscription)
bus.subscribe((Lost, Found), keeps_both, transactional=True, hold=True)


@bus.subscribe(Ordered, transactional=True, where=lambda event: event.quantity > 3)
def writes(event: Ordered, transaction: Transaction) -> None:
    transaction.execute("SELECT 1")


@bus.subscribe((Lost, Found), name="both", transactional=True)
def writes_both(event: Lost | Found, transaction: Transaction) -> None: ...


@bus.subscribe((Ordered, Paid, Shipped, Returned, Lost, Found), transactional=True)
def writes_all(event: DomainEvent, transaction: Transaction) -> None: ...
