"""The proofs in small scenarios, as commands."""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import get_args

import attrs

from tests.proofs.every.calls import CALLS
from tests.proofs.every.cancellations import cancel_call, cancel_scenario
from tests.proofs.every.interrupts import control_c, interrupt_everywhere
from tests.proofs.every.program import Kind
from tests.proofs.every.runs import run, run_interrupted
from tests.proofs.every.scenario import Scenario
from tests.proofs.every.scenarios import SCENARIOS
from tests.proofs.every.schedules import NotRepeatable, every_schedule, one_schedule, some_schedules
from tests.proofs.proof import Proof


@attrs.define
class Report:
    """Prints what was done, and adds it up."""

    sums: dict[str, int] = attrs.field(factory=dict)
    current: str = ""
    """What is being done, for the line about a violation."""
    _started: float = 0.0

    def begin(self, what: str) -> None:
        """Something is begun."""
        self.current, self._started = what, time.perf_counter()

    def end(self, proof: str, count: int, rest: str) -> None:
        """It was done so many times."""
        self.sums[proof] = self.sums.get(proof, 0) + count
        seconds = time.perf_counter() - self._started
        print(f"{self.current:42} {count:7,} {rest}, {seconds:.1f} s", flush=True)


def schedules(chosen: list[Scenario], options: argparse.Namespace, report: Report) -> str:
    """Run every schedule of the scenarios."""
    incomplete = []
    for scenario in chosen:
        go = partial(run, scenario)
        report.begin(f"schedules {scenario.name}")
        found = every_schedule(go, options.most)
        if found.is_complete:
            rest = f"schedules: complete, with up to {found.most_bits} decisions"
            report.end("schedules", found.count, rest)
        else:
            incomplete.append(scenario.name)
            drawn = options.most // 4
            some_schedules(go, drawn)
            rest = f"schedules: NOT COMPLETE, the first {found.count:,} and {drawn:,} at random"
            report.end("schedules", found.count + drawn, rest)
    return f"not complete: {', '.join(incomplete)}" if incomplete else "complete in each scenario"


def cancel(chosen: list[Scenario], options: argparse.Namespace, report: Report) -> str:
    """Cancel the scenarios, and every public call, at every step."""
    for scenario in chosen:
        report.begin(f"cancel {scenario.name}")
        steps = sum(cancel_scenario(scenario, seed=seed) for seed in range(options.seeds))
        report.end("cancel", steps, f"steps, in {options.seeds} orders of tasks")
    called = [call for call in CALLS if call.name in options.call]
    for call, kind, is_alone in product(called, get_args(Kind), (True, False)):
        if kind not in call.kinds or (not is_alone and call.setting != "bus"):
            continue
        how = "" if call.setting != "bus" else " alone" if is_alone else " with its bus"
        store = {"none": "", "memory": ", in memory", "sqlite": ", in SQLite"}[kind]
        report.begin(f"cancel {call.name}{how}{store}")
        # Files are slow, and what differs between orders is seen in memory too.
        seeds = max(1, options.seeds // (25 if kind == "sqlite" else 5))
        orders = (cancel_call(call, kind, is_alone=is_alone, seed=s) for s in range(seeds))
        report.end("cancel", sum(orders), f"steps, in {seeds} orders of tasks")
    return "every step of each order"


def sigint(chosen: list[Scenario], _: argparse.Namespace, report: Report) -> str:
    """Interrupt the scenarios at every bytecode of triobus that lets signals in."""
    with control_c():
        for scenario in (s for s in chosen if s.kind != "sqlite"):  # whose file goes with its world
            report.begin(f"sigint {scenario.name}")
            moments = interrupt_everywhere(partial(run_interrupted, scenario))
            report.end("sigint", moments, "interrupts, one at every bytecode that lets it in")
    return "every bytecode"


Try = Callable[[list[Scenario], argparse.Namespace, Report], str]
"""Tries the scenarios, and returns what is to be said of all of them."""


def _prove(name: str, counted: str, attempt: Try, options: argparse.Namespace) -> int:
    for chosen in options.scenario:
        if chosen not in SCENARIOS:
            options.refuse(f"no scenario {chosen!r}: there are {', '.join(SCENARIOS)}")
    # The calls are no scenarios: they are cancelled when no scenario was chosen.
    options.call = [] if options.scenario else [call.name for call in CALLS]
    chosen = [SCENARIOS[name] for name in options.scenario or SCENARIOS]
    if options.repeat is not None and len(chosen) != 1:
        options.refuse("--repeat is about one scenario: schedules --repeat 0101 retry")
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    report = Report()
    try:
        if options.repeat is not None:
            report.begin(f"schedules {chosen[0].name}")
            one_schedule(partial(run, chosen[0]), options.repeat)
            print(f"schedule {options.repeat} of {chosen[0].name}: no promise broken")
            return 0
        outcome = attempt(chosen, options, report)
    except (AssertionError, NotRepeatable) as failure:
        print(f"VIOLATION in {report.current}: {failure}", file=sys.stderr)
        return 1
    said = f"{report.sums[name]:,} {counted} ({outcome})"
    print(f"{len(chosen)} scenarios: {said}: no promise broken")
    return 0


def _scenarios(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(repeat=None)
    parser.add_argument(
        "scenario",
        nargs="*",
        metavar="SCENARIO",
        help="; ".join(f"{name}: {s.live.__doc__}" for name, s in SCENARIOS.items()),
    )


def _schedules(parser: argparse.ArgumentParser) -> None:
    _scenarios(parser)
    parser.add_argument(
        "--most", type=int, default=20_000, help="schedules of one scenario, at most (20000)"
    )
    parser.add_argument("--repeat", metavar="BITS", help="one schedule of one scenario again")


def _cancel(parser: argparse.ArgumentParser) -> None:
    _scenarios(parser)
    parser.add_argument(
        "--seeds", type=int, default=50, help="in how many orders of tasks to cancel (50)"
    )


_REST = (
    "Time is virtual, and no thread is started, so that a run is the same whenever it is repeated."
)

PROOFS = {
    "schedules": Proof(
        f"every order of runnable tasks that Trio can choose, in small scenarios\n\n{_REST}",
        _schedules,
        partial(_prove, "schedules", "schedules", schedules),
    ),
    "cancel": Proof(
        "small scenarios, and every public call, are cancelled before every step of the "
        f"scheduler\n\n{_REST}",
        _cancel,
        partial(_prove, "cancel", "steps cancelled", cancel),
    ),
    "sigint": Proof(
        f"Control-C at every bytecode of a scenario that lets signals in\n\n{_REST}",
        _scenarios,
        partial(_prove, "sigint", "interrupts", sigint),
    ),
}
