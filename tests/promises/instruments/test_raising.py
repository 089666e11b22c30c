"""An instrument that raises is removed and logged, and disturbs nothing."""

from collections import Counter

import pytest

from tests.events import Noted
from tests.promises.failing import ONCE, failing
from tests.promises.instruments.journal import Journal
from triobus import EventBus, Instrument, MemoryEventStore


class Raises(Instrument):
    """Raises in one hook, at each time that it is called."""

    def __init__(self, hook):
        self.calls = 0
        setattr(self, hook, self._raise)

    def _raise(self, *_):
        self.calls += 1
        raise RuntimeError("it is broken")


class RaisesInside(Instrument):
    """Raises when one of its context managers is entered, or left."""

    def __init__(self, hook, *, is_entering):
        self.is_entering = is_entering
        self.calls = 0
        setattr(self, hook, lambda _: self)

    def __enter__(self):
        if self.is_entering:
            self._raise()

    def __exit__(self, *_):
        self._raise()

    def _raise(self):
        self.calls += 1
        raise RuntimeError("it is broken")


HOOKS = (
    "publishing",
    "published",
    "attempt_started",
    "handling",
    "attempt_finished",
    "retry_scheduled",
    "settled",
    "dead_lettered",
    "committed",
    "group_paused",
    "group_resumed",
)


async def _everything_happens(bus, journal):
    """Let every hook be called, more than once."""
    bus.add_instrument(journal)
    async with bus:
        for number in range(3):
            await bus.publish(Noted(number))
            await bus.wait_idle()
            await bus._default.pause()
            await bus._default.resume()
    return [line for line in journal.lines if line[0] != "committed"]


def _bus():
    bus = EventBus(MemoryEventStore(), workers=1)
    bus.subscribe(Noted, failing(OSError()), name="retried")
    bus.subscribe(Noted, failing(OSError()), name="dead", retry=ONCE)
    return bus


@pytest.mark.parametrize("hook", HOOKS)
async def test_one_that_raises_is_removed_and_the_rest_is_as_it_was_without(
    hook, caplog, autojump_clock
):
    broken, bus = Raises(hook), _bus()
    bus.add_instrument(broken)
    found = await _everything_happens(bus, Journal())
    assert broken.calls == 1
    _was_logged(caplog, "Raises", hook)
    plain = _bus()
    expected = await _everything_happens(plain, Journal())
    assert Counter(line[0] for line in found) == Counter(line[0] for line in expected)
    assert bus.statistics().handled == plain.statistics().handled == 3


@pytest.mark.parametrize("is_entering", [True, False])
@pytest.mark.parametrize("hook", ["publishing", "handling"])
async def test_so_is_one_whose_context_manager_raises(hook, is_entering, caplog, autojump_clock):
    broken, bus = RaisesInside(hook, is_entering=is_entering), _bus()
    bus.add_instrument(broken)
    await _everything_happens(bus, Journal())
    assert broken.calls == 1
    _was_logged(caplog, "RaisesInside", hook)
    assert bus.statistics().handled == 3


def _was_logged(caplog, name, hook):
    errors = [record.getMessage() for record in caplog.records if "instrument" in record.msg]
    assert errors == [
        f"the instrument {name} was removed, for its {hook}() raised RuntimeError: it is broken"
    ]
    (record,) = (record for record in caplog.records if "instrument" in record.msg)
    assert "in _raise" in record.exc_text


async def test_metadata_that_is_none_removes_the_instrument(caplog, autojump_clock):
    class Wrong(Instrument):
        def publishing(self, events):
            return _Yields([{"key": 1}])

    bus, seen = EventBus(), []
    bus.subscribe(Noted, lambda event: seen.append(dict(event.metadata)))
    bus.add_instrument(Wrong())
    async with bus:
        await bus.publish(Noted(1))
    assert seen == [{}]
    assert "Wrong was removed, for its publishing() raised InvalidEvent" in caplog.text


class _Yields:
    def __init__(self, given):
        self.given = given

    def __enter__(self):
        return self.given

    def __exit__(self, *_):
        return None


def test_what_added_to_raises_leaves_the_call_and_nothing_was_added():
    bus, broken = EventBus(), Raises("added_to")
    with pytest.raises(RuntimeError, match="it is broken"):
        bus.add_instrument(broken)
    assert bus._lives.instruments.present == []


async def test_a_line_of_the_log_stays_a_line(printable_log, caplog, autojump_clock):
    class Hostile(Instrument):
        def published(self, event, position):
            raise RuntimeError("two\nlines \x1b[2J")

    bus = EventBus()
    bus.add_instrument(Hostile())
    async with bus:
        await bus.publish(Noted(1))
    assert "RuntimeError: two\\nlines" in caplog.text
