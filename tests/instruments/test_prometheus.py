"""What Prometheus is shown of a bus: the exposition, as its own parser reads it."""

import shutil
import subprocess
import threading

import pytest
import trio
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.events import Noted
from tests.promises.failing import ONCE, failing
from triobus import EventBus, InvalidOption, MemoryEventStore, Retry, SqliteEventStore
from triobus.prometheus import PrometheusInstrument

LABELS = ("group", "subscription", "outcome", "error", "le")
HOUR = Retry(attempts=2, delay=3600, jitter=0)


def watched(store=None, **options):
    """Return a bus and the registry that shows it."""
    bus, registry = EventBus(store, **options), CollectorRegistry()
    bus.add_instrument(PrometheusInstrument(registry))
    return bus, registry


def scraped(registry):
    """Return what the exposition says: values by name and labels, without the library's own."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, *(sample.labels[name] for name in LABELS if name in sample.labels)): (
            sample.value
        )
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def of(found, name):
    """Return the values of one metric."""
    return {key[1:]: value for key, value in found.items() if key[0] == name}


async def test_everything_is_shown_by_the_names_that_are_documented(tmp_path, autojump_clock):
    bus, registry = watched(SqliteEventStore(tmp_path / "events.db"))
    bus.subscribe(Noted, failing(), name="note")
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        found = scraped(registry)
    assert {name.removesuffix("_bucket") for name, *_ in found} == {
        "triobus_events_published_total",
        "triobus_deliveries_total",
        "triobus_handler_seconds",
        "triobus_handler_seconds_count",
        "triobus_handler_seconds_sum",
        "triobus_commit_seconds",
        "triobus_commit_seconds_count",
        "triobus_commit_seconds_sum",
        "triobus_lag",
        "triobus_queued",
        "triobus_retries_waiting",
        "triobus_dead_letters",
        "triobus_workers_busy",
        "triobus_store_bytes",
    }
    assert found["triobus_store_bytes",] >= 4096
    assert found["triobus_commit_seconds_count",] >= 2


async def test_counters_agree_with_what_has_happened(autojump_clock):
    bus, registry = watched(MemoryEventStore())

    @bus.subscribe(Noted, name="note", retry=Retry(attempts=2, jitter=0))
    async def note(event):
        await trio.sleep(0.02)
        if event.number < 3:
            raise OSError

    bus.group("mail").subscribe(Noted, failing(ValueError()), name="send", retry=ONCE)
    async with bus:
        await bus.publish_many([Noted(number, "a") for number in range(10)])
        await bus.wait_idle()
        found = scraped(registry)
    assert of(found, "triobus_events_published_total") == {(): 10}
    assert of(found, "triobus_deliveries_total") == {
        ("default", "handled"): 7,
        ("default", "dead_lettered"): 3,
        ("mail", "handled"): 9,
        ("mail", "dead_lettered"): 1,
    }
    assert of(found, "triobus_attempts_failed_total") == {
        ("default", "note", "OSError"): 6,
        ("mail", "send", "ValueError"): 1,
    }
    assert of(found, "triobus_dead_letters") == {("default",): 3, ("mail",): 1}
    assert found["triobus_handler_seconds_count", "default", "note"] == 13
    assert found["triobus_handler_seconds_sum", "default", "note"] == pytest.approx(13 * 0.02)
    buckets = of(found, "triobus_handler_seconds_bucket")
    assert buckets["default", "note", "0.01"] == 0
    assert buckets["default", "note", "0.025"] == 13


async def test_gauges_are_read_when_a_scrape_comes(autojump_clock):
    bus, registry = watched(workers=2)
    go_on = trio.Event()

    @bus.subscribe(Noted, name="note", retry=HOUR)
    async def note(event):
        if event.number == 0:
            raise OSError
        await go_on.wait()

    async with bus:
        await bus.publish_many([Noted(number) for number in range(6)])
        await trio.sleep(1)
        found = scraped(registry)
        assert of(found, "triobus_retries_waiting") == {("default",): 1}
        assert of(found, "triobus_workers_busy") == {("default",): 2}
        assert of(found, "triobus_queued") == {("default",): 3}
        assert of(found, "triobus_lag") == {("default",): 6}
        go_on.set()
        await trio.sleep(1)
        found = scraped(registry)
        assert of(found, "triobus_workers_busy") == {("default",): 0}
        assert of(found, "triobus_lag") == {("default",): 1}
        await bus.retries.give_up(await bus.retries.list())
        await bus.wait_idle()
        assert of(scraped(registry), "triobus_dead_letters") == {("default",): 1}
        await bus.dead_letters.discard(1)
        assert of(scraped(registry), "triobus_dead_letters") == {("default",): 0}


async def test_a_handler_that_is_cancelled_has_not_failed(autojump_clock):
    bus, registry = watched()

    @bus.subscribe(Noted, name="note")
    async def note(event):
        await trio.sleep_forever()

    async with bus:
        await bus.publish(Noted(1))
        await trio.sleep(1)
        await bus.stop(drain=False)
    found = scraped(registry)
    assert of(found, "triobus_attempts_failed_total") == {}
    assert of(found, "triobus_deliveries_total") == {}


async def test_a_batch_is_one_call_and_as_many_deliveries_as_it_has(autojump_clock):
    bus, registry = watched()

    async def store(events):
        """Succeed."""

    bus.group("bulk", batch=10, workers=1).subscribe(Noted, store, name="store")
    async with bus:
        await bus.publish_many([Noted(number) for number in range(3)])
        await bus.wait_idle()
        found = scraped(registry)
    assert found["triobus_handler_seconds_count", "bulk", "store"] == 1
    assert found["triobus_deliveries_total", "bulk", "handled"] == 3


async def test_a_bus_is_shown_before_it_starts_and_after_it_has_stopped(autojump_clock):
    bus, registry = watched()
    bus.subscribe(Noted, failing(), name="note")
    assert scraped(registry)["triobus_events_published_total",] == 0
    async with bus:
        await bus.publish(Noted(1))
    assert scraped(registry)["triobus_deliveries_total", "default", "handled"] == 1


async def test_a_scrape_may_come_in_another_thread(autojump_clock):
    bus, registry = watched()
    bus.subscribe(Noted, failing(), name="note")
    async with bus:
        await bus.publish(Noted(1))
        await bus.wait_idle()
        found = []
        thread = threading.Thread(target=lambda: found.append(scraped(registry)))
        thread.start()
        thread.join()
    assert found[0]["triobus_events_published_total",] == 1


def test_an_instrument_that_was_removed_shows_nothing_and_may_be_added_again():
    bus, registry = EventBus(), CollectorRegistry()
    instrument = PrometheusInstrument(registry)
    bus.add_instrument(instrument)
    bus.remove_instrument(instrument)
    assert scraped(registry) == {}
    EventBus().add_instrument(instrument)
    assert scraped(registry) != {}


def test_it_watches_one_bus_and_a_registry_shows_one():
    registry, instrument = CollectorRegistry(), PrometheusInstrument(CollectorRegistry())
    EventBus().add_instrument(instrument)
    with pytest.raises(InvalidOption, match=r"watches <EventBus in memory, new.*make one for each"):
        EventBus().add_instrument(instrument)
    EventBus().add_instrument(PrometheusInstrument(registry))
    with pytest.raises(InvalidOption, match="the registry shows another bus"):
        EventBus().add_instrument(PrometheusInstrument(registry))


async def test_names_and_errors_of_every_kind_are_escaped(autojump_clock):
    bus, registry = watched()
    odd = 'a "quoted"\nname\\'
    error = type(odd, (Exception,), {})()
    bus.subscribe(Noted, failing(error), name="two words", retry=ONCE)
    async with bus:
        await bus.publish(Noted(1))
    (labels,) = of(scraped(registry), "triobus_attempts_failed_total")
    assert labels[:2] == ("default", "two words")
    assert "quoted" in labels[2]


def test_promtool_has_nothing_to_say_against_the_exposition(tmp_path):
    shown = []

    async def main():
        bus, registry = watched(SqliteEventStore(tmp_path / "events.db"))
        bus.subscribe(Noted, failing(OSError()), name="note", retry=ONCE)
        async with bus:
            await bus.publish(Noted(1))
            await bus.wait_idle()
            shown.append(generate_latest(registry))

    if shutil.which("promtool") is None:
        pytest.skip("promtool comes with Debian's package prometheus")
    trio.run(main)
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=shown[0], capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
