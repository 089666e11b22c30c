"""What triobus says of data that it was given: in logs, in dead letters, in errors."""

import logging
from typing import ClassVar

import attrs
import pytest
import trio

from tests.sqlite.hostile.probing import check_printable
from triobus import (
    DomainEvent,
    EventBus,
    MemoryEventStore,
    Retry,
    SequenceConflict,
    SqliteEventStore,
    StoreError,
)

pytestmark = pytest.mark.usefixtures("printable_log")

SECRET = "4929 1234 5678 9012"
EVIL = "\x1b]0;owned\x07\x9b31m\u202e\u2066\r\n"


@attrs.frozen
class Paid(DomainEvent):
    event_type: ClassVar[str] = "hostile.paid"

    card: str = SECRET

    @property
    def aggregate_id(self):
        return self.card


@attrs.frozen
class Refunded(DomainEvent):
    event_type: ClassVar[str] = f"hostile.{EVIL}"

    number: int = 0


@pytest.fixture
def path(tmp_path):
    """Where the store is."""
    return tmp_path / "hostile.db"


@pytest.mark.parametrize("kind", ["memory", "in a store", "in a file"])
async def test_nothing_of_an_event_but_its_id_is_logged_where_messages_are_not(
    caplog, path, autojump_clock, kind
):
    """Whatever becomes of it: retried, given up, held back, cut off, and not to be decoded."""
    caplog.set_level(logging.DEBUG)
    store = {
        "in a store": MemoryEventStore(types=[Paid]),
        "in a file": SqliteEventStore(path, types=[Paid]),
    }.get(kind)
    bus = EventBus(store, log_errors="type")

    @bus.subscribe(Paid, name="fail", retry=Retry(attempts=3), hold=True)
    async def fail(event):
        raise ValueError(f"no money on {event.card}")

    @bus.subscribe(Paid, name="time out", timeout=1, retry=Retry(attempts=1))
    async def time_out(event):
        await trio.sleep_forever()

    @bus.subscribe(Paid, name="cut off")
    async def cut_off(event):
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError(f"cut off: {event.card}")

    async with bus:
        events = [Paid(metadata={SECRET: SECRET}) for _ in range(2)]
        await bus.publish_many(events)
        await bus.stop(timeout=60)
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if SECRET in line or "money" in line] == []
    ids = [str(event.event_id) for event in events]
    assert [line for line in said if any(i in line for i in ids)]
    assert [
        line
        for line in said
        if "'cut off' in group 'default' raised an error when cancelled: ValueError" in line
    ]


@attrs.frozen
class PaidByNumber(DomainEvent):
    """What `Paid` might have become, without a new version."""

    event_type: ClassVar[str] = "hostile.paid"

    card: int


async def test_data_that_cannot_be_decoded_is_in_the_dead_letter_and_in_no_such_log(caplog, path):
    caplog.set_level(logging.DEBUG)
    async with SqliteEventStore(path, types=[Paid]) as store:
        await store.append([Paid()])
    bus = EventBus(SqliteEventStore(path, types=[PaidByNumber]), log_errors="type")
    group = bus.group("all", start="beginning")
    group.subscribe(PaidByNumber, lambda event: None, name="x")
    async with bus:
        await bus.wait_idle()
        (letter,) = await bus.dead_letters.list()
    assert (letter.error_type, letter.event) == ("EventNotDecodable", None)
    assert f'card: expected int, found "{SECRET}"' in letter.message
    assert "dead letter 1" in caplog.text
    assert SECRET not in caplog.text


async def test_names_and_types_are_logged_on_one_line_without_escapes(caplog):
    bus = EventBus()
    error = type(EVIL, (Exception,), {})
    group = bus.group(f"group {EVIL}")

    @group.subscribe(Refunded, name=f"name {EVIL}", retry=Retry(attempts=2, delay=0))
    async def fail(event):
        raise error(EVIL)

    async with bus:
        await bus.publish(Refunded())
    records = [record for record in caplog.records if record.name == "triobus"]
    check_printable((records[1].exc_text or "-").replace("\n", ""))
    lines = [record.getMessage() for record in records]
    assert len(lines) == 2
    for line in lines:
        check_printable(line)
        assert "\n" not in line
        evil = r"\x1b]0;owned\x07\x9b31m\u202e\u2066\r\n"
        assert line.endswith(f": {evil}: {evil}")


async def test_a_dead_letter_has_no_local_variables(autojump_clock):
    bus = EventBus()

    @bus.subscribe(Paid, retry=Retry(attempts=1))
    async def fail(event):
        number = event.card
        raise ValueError(len(number))

    async with bus:
        await bus.publish(Paid())
    (letter,) = await bus.dead_letters.list()
    assert "raise ValueError(len(number))" in letter.traceback
    assert SECRET not in letter.traceback + letter.message + letter.error_type


async def test_the_name_of_an_errors_type_is_cut():
    bus = EventBus()
    error = type("E" * 1_000_000, (Exception,), {})

    @bus.subscribe(Paid, retry=Retry(attempts=1))
    async def fail(event):
        raise error

    async with bus:
        await bus.publish(Paid())
    (letter,) = await bus.dead_letters.list()
    assert letter.error_type == "E" * 4096


@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_errors_of_a_store_are_one_printable_line(path, kind):
    store = (
        MemoryEventStore(types=[Paid]) if kind == "memory" else SqliteEventStore(path, types=[Paid])
    )
    async with store:
        with pytest.raises(SequenceConflict) as caught:
            await store.append([Paid(card=EVIL)], expected_sequence=7)
    check_printable(str(caught.value))
    assert "\n" not in str(caught.value)


async def test_a_path_with_escapes_is_said_without(tmp_path):
    with pytest.raises(StoreError) as caught:
        async with SqliteEventStore(tmp_path / f"{EVIL}" / "a.db"):
            pass
    check_printable(str(caught.value))
    assert "\n" not in str(caught.value)
