"""How often a bus with nothing to do wakes up: never."""

import attrs
import trio

import triobus


@attrs.frozen
class Ticked(triobus.DomainEvent):
    """An event, so that the bus has worked before it idles."""


async def handler(event: Ticked) -> None:
    """Do nothing."""


async def voluntary_switches(seconds: float, *, with_bus: bool) -> int:
    """Return how often the process gave up the processor in that time, with or without a bus."""
    import psutil  # the extra `bench` has it

    process = psutil.Process()

    async def count() -> int:
        before = process.num_ctx_switches().voluntary
        await trio.sleep(seconds)
        # The sleep itself is one: the process waits for its end.
        return int(process.num_ctx_switches().voluntary - before - 1)

    if not with_bus:
        return await count()
    bus = triobus.EventBus()
    bus.subscribe(Ticked, handler)
    async with bus:
        await bus.publish_many([Ticked() for _ in range(1000)])
        await bus.wait_idle()
        return await count()


def main(*, quick: bool, rounds: int | None) -> bool:
    """Measure, print the figures, and return whether there was no wake-up."""
    seconds = 1.0 if quick else 5.0
    is_good = True
    for _ in range(rounds or 1):
        print(f"idle: counting voluntary context switches for {seconds:g} s", flush=True)
        alone = trio.run(lambda: voluntary_switches(seconds, with_bus=False))
        found = trio.run(lambda: voluntary_switches(seconds, with_bus=True))
        print(f"{'Trio alone':34}{alone:10}\n{'an idle bus':34}{found:10}\nbound{'':29}{0:10}")
        is_good &= found <= max(alone, 0)
    return is_good
