"""What type checkers have to refuse, and for what, line by line. It is never run."""

from tests.unit.types.events import Found, Lost, Ordered, OrderedTwice, Paid, Returned, Shipped
from triobus import BatchHandlers, DomainEvent, EventBus, Handlers, Transaction

bus = EventBus()
mail = bus.group("mail")
handlers = Handlers()
batches = BatchHandlers()


@handlers.subscribe(Ordered)  # refused: handler
async def declared_of_another(event: Paid) -> None: ...


@batches.subscribe(Ordered)  # refused: handler
async def declared_of_one(event: Ordered) -> None: ...


# Decorators


@bus.subscribe(Ordered)  # refused: handler
async def of_another(event: Paid) -> None: ...


@mail.subscribe(Ordered)  # refused: handler
def of_another_in_a_group(event: Paid) -> None: ...


@bus.subscribe(Ordered, name="x", hold=True)  # refused: handler
async def of_a_subclass(event: OrderedTwice) -> None: ...


@bus.subscribe((Ordered, Paid))  # refused: handler
async def of_one_of_two(event: Ordered) -> None: ...


@bus.subscribe((Ordered, Paid, Shipped, Lost, Found))  # refused: handler
async def of_four_of_five(event: Ordered | Paid | Shipped | Lost) -> None: ...


@bus.subscribe(DomainEvent)  # refused: handler
async def of_one_type_only(event: Ordered) -> None: ...


@bus.subscribe(Ordered)  # refused: handler
async def of_no_event(event: int) -> None: ...


@bus.subscribe(Ordered)  # refused: handler
async def of_nothing() -> None: ...


@bus.subscribe(Ordered)  # refused: handler
async def of_two_arguments(event: Ordered, other: int) -> None: ...


# Calls


class Handler:
    async def __call__(self, event: Paid) -> None: ...

    def method(self, event: Paid) -> None: ...


async def of_paid(event: Paid) -> None: ...


some: tuple[type[DomainEvent], ...] = (Ordered, Paid)

bus.subscribe(Ordered, of_paid)  # refused: handler
mail.subscribe(Ordered, of_paid, name="y")  # refused: handler
bus.subscribe(Ordered, Handler())  # refused: handler
bus.subscribe(Ordered, Handler().method)  # refused: handler
bus.subscribe((Ordered, Paid), of_paid)  # refused: handler
bus.subscribe((Ordered, Paid, Lost, Found), of_paid)  # refused: handler
bus.subscribe(some, of_paid)  # refused: handler
bus.subscribe(DomainEvent, of_paid)  # refused: handler
bus.subscribe(int, of_paid)  # refused: type
bus.subscribe(Ordered, lambda event: event.cents)  # refused: attribute


# Options

bus.subscribe(Ordered, where=lambda event: event.cents)  # refused: attribute
bus.subscribe((Shipped, Paid), where=lambda event: event.cents)  # refused: attribute
bus.subscribe(Ordered, print, where=lambda event: event.cents)  # refused: attribute
bus.subscribe(Ordered, priorty=3)  # refused: option
bus.subscribe(Ordered, retry=3)  # refused: option


def pays(event: Paid, transaction: Transaction) -> None: ...


def of_one(event: Ordered) -> None: ...


bus.subscribe(Ordered, pays, transactional=True)  # refused: option
bus.subscribe((Ordered, Lost), pays, transactional=True)  # refused: option
bus.subscribe(Ordered, of_one, transactional=True)  # refused: option


@bus.subscribe(Ordered, transactional=True)  # refused: handler
def also_pays(event: Paid, transaction: Transaction) -> None: ...


# Listening


async def listen() -> None:
    async with bus.listen(Ordered) as orders:
        async for order in orders:
            print(order.cents)  # refused: attribute
    async with bus.listen(Ordered, Paid) as either:
        async for event in either:
            print(event.cents)  # refused: attribute
    bus.listen(int)  # refused: type
    print((await bus.wait_for(Ordered)).cents)  # refused: attribute
    print((await bus.wait_for((Ordered, Paid))).cents)  # refused: attribute
    await bus.wait_for(Lost, lambda event: event.cents)  # refused: attribute
    await bus.wait_for((Lost, Returned), lambda event: event.cents)  # refused: attribute
