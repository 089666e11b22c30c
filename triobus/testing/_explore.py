"""`explore` and `cancel_at_every_step`: a scenario under many chances, and cancelled anywhere."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import trio

from triobus import _checks
from triobus._errors import InvalidOption
from triobus.testing._world import Broken, Faults, Scenario, World, run_in_world, told

_MOST_STEPS = 100_000


class ExplorationFailed(AssertionError):
    """A scenario failed in some world; the message has the seed and what happened there."""

    seed: int
    """What `explore(..., seed=)` repeats it with."""


class StepFailed(AssertionError):
    """A scenario did not bear to be cancelled at some step."""

    step: int
    """What `cancel_at_every_step(..., step=)` repeats it with."""


@attrs.frozen(kw_only=True)
class Exploration:
    """What `explore` has seen, in all worlds."""

    seeds: int = 0
    """How many worlds."""
    steps: int = 0
    """How many steps Trio's scheduler took in them."""
    crashes: int = 0
    """How often a program was killed."""
    published: int = 0
    """Events that were accepted."""
    attempts: int = 0
    """Calls of handlers, those that were to fail included."""
    timeline: str = attrs.field(default="", repr=False)
    """What happened in the last world."""


def explore(
    scenario: Scenario,
    *,
    seeds: int | Iterable[int] = 200,
    faults: Faults | None = None,
    seed: int | None = None,
) -> Exploration:
    """Run an async scenario in many worlds, each decided by a seed, and check every bus in it.

    A seed decides the order in which Trio takes runnable tasks, how long each call of a store or of
    a plain `def` handler takes (they are made without threads, in virtual time), which attempts of
    handlers fail, and when the program is killed and started again; see `Faults`. The scenario says
    with `assert` what it expects. Besides, each bus that is started in it is checked: nothing that
    it accepted is lost, aggregates keep their order, offsets never go back and tell the truth,
    statistics add up, nothing waits for ever, and no handler changes an event (`EventChanged`).

    Time is virtual, and waits for no thread of the scenario's own: `trio.to_thread` belongs into
    `async with hold_clock()`, though what a thread does when is then left to chance.

    A scenario `async def scenario(world)` is given the `World`, with a directory for its store; it
    may be killed anywhere and is then called again, with the same directory. One without arguments
    is never killed.

    `seeds` is how many, or which. Raises `ExplorationFailed` with the seed and the timeline of the
    first that fails; `seed=N` repeats that one alone, step by step the same. Not to be called
    inside `trio.run`.
    """
    __tracebackhide__ = True  # for pytest: what failed is in the scenario
    return explored(
        scenario, seeds, faults, seed, repeated_with=lambda seed: f"explore(..., seed={seed})"
    )


def explored(
    scenario: Scenario,
    seeds: int | Iterable[int] = 200,
    faults: Faults | None = None,
    seed: int | None = None,
    *,
    repeated_with: Callable[[int], str],
) -> Exploration:
    """Do what `explore` does; `repeated_with` says how to repeat a seed."""
    __tracebackhide__ = True
    _check_scenario(scenario)
    if seed is not None:
        seeds = [_checks.whole_number("seed", seed, least=0)]
    elif isinstance(seeds, int):
        seeds = range(_checks.whole_number("seeds", seeds, least=1))
    world: World | None = None
    counted: Counter[str] = Counter()
    for chance in seeds:
        try:
            world = run_in_world(
                chance, faults or Faults(), lambda world: world.live(scenario), World.step
            )
        except Broken as broken:
            report = broken.world.report(repeated_with(chance))
            failure = ExplorationFailed(f"seed {chance}: {told(broken.error)}{report}")
            failure.seed = chance
            raise failure from broken.error
        counted.update(
            seeds=1,
            steps=world.steps,
            crashes=world.crashes,
            published=len(world.recording.published),
            attempts=len(world.recording.attempts),
        )
    return Exploration(**counted, timeline="" if world is None else world.timeline())


def cancel_at_every_step(
    scenario: Scenario, check: Callable[..., Any], *, step: int | None = None, seed: int = 0
) -> int:
    """Run an async scenario once for every step of Trio's scheduler, and cancel it at that step.

    After each run `check` is called, plain or async, which asserts what must hold; a last run is
    not cancelled. Both may take one argument, a `World` that is new for each run: its directory is
    for a store, and `world.outside` for what the scenario leaves to the check. Threads are replaced
    as in `explore`, so that the steps are the same each time; `seed` chooses another order of them.

    Returns how many steps there are. Raises `StepFailed` with the number of the first step that
    fails and what happened; `step=N` repeats that one alone. Not to be called inside `trio.run`.
    """
    __tracebackhide__ = True
    _check_scenario(scenario)
    if step is not None:
        _checks.whole_number("step", step, least=1)
    faults = Faults(handler_failures=0, latency=0.001, crashes=0)
    for number in range(1, _MOST_STEPS) if step is None else [step]:

        def on_step(world: World, number: int = number) -> None:
            world.steps += 1
            if world.steps == number and not world.is_over:
                world.scope.cancel()

        async def main(world: World) -> None:
            with world.scope:
                await world.give_to(scenario)
            world.is_over = True
            found = world.give_to(check)
            if inspect.isawaitable(found):
                await found

        try:
            world = run_in_world(seed, faults, main, on_step)
        except Broken as broken:
            report = broken.world.report(f"cancel_at_every_step(..., step={number})")
            failure = StepFailed(f"cancelled at step {number}: {told(broken.error)}{report}")
            failure.step = number
            raise failure from broken.error
        if not world.scope.cancel_called:
            return number - 1
    return 1


def _check_scenario(scenario: Scenario) -> None:
    if not callable(scenario):
        raise InvalidOption(f"{scenario!r}: give an async function, without calling it")
    if trio.lowlevel.in_trio_run():
        raise InvalidOption(
            "a scenario has runs of Trio of its own: call this in a plain function, outside "
            "trio.run()"
        )
