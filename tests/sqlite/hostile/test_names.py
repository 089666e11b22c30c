"""Names and ids that mean something to SQL, paths or terminals are just names."""

from typing import ClassVar

import attrs
import pytest
import trio

from tests.cli.test_hostile_lines import line, run
from tests.sqlite.hostile.forging import good, opened, rows
from tests.sqlite.hostile.probing import check_printable, verified
from triobus import DomainEvent, EventBus, Retry, SqliteEventStore

NAMES = {
    "SQL": "'); DROP TABLE events; --",
    "SQL in double quotes": '"; DELETE FROM events; --',
    "a pattern": "%_*?[",
    "a path": "../../../etc/passwd",
    "a URI": "file:x?mode=memory",
    "a format": "%s %(name)s {0} {event.__class__} ${HOME} `id`",
    "escapes": "\x1b]0;owned\x07\x9b31m\u202e\r\n",
    "a blank": " ",
    "4,000 characters": "n" * 4000,
    "beyond the first plane": "😀",
}


@attrs.frozen
class Named(DomainEvent):
    event_type: ClassVar[str] = "hostile'); DROP TABLE events; --\x1b[31m"

    key: str

    @property
    def aggregate_id(self):
        return self.key


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
async def test_names_and_ids_are_kept_and_found_as_they_are(path, autojump_clock, caplog, name):
    handled = []
    is_broken = True

    async def handle(event):
        handled.append(event.key)
        if is_broken:
            raise ValueError(name)

    def new_bus():
        bus = EventBus(SqliteEventStore(path))
        bus.group(name).subscribe(Named, handle, name=name, retry=Retry(attempts=2))
        return bus

    async with new_bus() as bus:
        event = Named(name, metadata={name[:1000]: name[:1000]})
        await bus.publish(event)
    assert handled == [name, name]
    async with new_bus() as bus:
        (letter,) = await bus.dead_letters.list(group=name, aggregate_id=name)
        assert (letter.event, letter.subscription, letter.message) == (event, name, name)
        is_broken = False
        assert await bus.dead_letters.replay(group=name) == 1
    async with SqliteEventStore(path) as store:
        assert [found.event async for found in store.read(aggregate_id=name, types=Named)] == [
            event
        ]
        assert (await store.statistics()).groups[name].offset == 1
    code, said = await trio.to_thread.run_sync(verified, path)
    assert code == 0
    check_printable(said + "".join(record.getMessage() for record in caplog.records))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE progress SET position = 99 WHERE name = 'default'",
        "UPDATE dead_letters SET id = -1",
        "UPDATE events SET data = replace(data, '1', '2') WHERE position = 8",
        "UPDATE attempts SET done = '\x1b[31m'",
    ],
)
def test_a_run_on_a_store_that_is_damaged_ends_with_one_line(path, statement):
    path.write_bytes(good())
    with opened(path) as connection:
        before = rows(connection)
        connection.execute(statement)
        assert rows(connection) != before
    code, out, err = run(path, line("middle"), "--store", str(path))
    check_printable(out + err)
    assert (code, out) == (2, "")
    assert "is damaged" in err.splitlines()[-1]
    assert "Traceback" not in err
