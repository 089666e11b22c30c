"""What must hold after a run, however it was disturbed. Written without a look at the bus."""

from collections import defaultdict

from tests.proofs.every.program import Program
from triobus._groups.statistics import GroupStatistics


class Violation(AssertionError):
    """A promise was broken."""


def check_handled(program: Program) -> None:
    """Nothing is delivered that raised, and nothing twice in one life.

    That aggregates go in order the instrument of the test kit sees, which every bus here has.
    """
    begun = {call.number for call in program.begun}
    _demand(not begun & program.refused, "publish raised, and a handler saw it", program)
    _demand(begun <= set(program.keys), "a handler saw what nobody published", program)
    orders: dict[tuple[int, str, str], list[int]] = defaultdict(list)
    for call in program.finished:
        key = program.keys[call.number]
        if key is not None:
            orders[call.life, call.group, key].append(call.number)
    for order in orders.values():
        _demand(len(order) == len(set(order)), f"handled twice in one life: {order}", program)


def check_counters(program: Program) -> None:
    """What is accepted is counted, and is either handled or left, in every bus."""
    for bus in program.buses:
        statistics = bus.statistics()
        _demand(not statistics.running and not statistics.worker_count, "a bus runs on", program)
        for name, group in statistics.groups.items():
            left = group.queued + group.in_flight + group.waiting_for_retry
            _demand(
                group.published == group.handled + left and min(_counters(group)) >= 0,
                f"the counters of group {name!r} do not add up: {group}",
                program,
            )
    if len(program.buses) == 1:
        accepted, unsure = len(program.accepted), len(program.unsure)
        published = program.buses[0].statistics().published
        beside = len(program.appended)  # counted, if the bus was there
        _demand(
            accepted <= published <= accepted + unsure + beside,
            f"{accepted} accepted, {unsure} unsure, {published} counted as published",
            program,
        )


def _counters(group: GroupStatistics) -> list[float]:
    """Return the counters of a group."""
    names = ("queued", "in_flight", "waiting_for_retry", "handled", "published", "lag")
    return [getattr(group, name) for name in names]


def check_lossless(program: Program) -> None:
    """A bus that has drained has dealt with everything that was accepted."""
    left = [n for n in program.accepted if n not in program.numbers_finished()]
    dead = sum(bus.statistics().dead_lettered for bus in program.buses)
    _demand(len(left) <= dead, f"accepted and lost: {left}", program)


def check_log(program: Program, logged: list[int]) -> None:
    """The store has what was accepted, nothing that was refused, and has it all handled."""
    accepted = {**program.accepted, **program.appended}
    _demand(set(accepted) <= set(logged), f"not in the store: {logged}", program)
    _demand(not program.refused & set(logged), f"refused and stored: {logged}", program)
    _demand(len(set(logged)) == len(logged), f"stored twice: {logged}", program)
    missing = set(logged) - set(program.numbers_finished()) - set(program.dead) - program.gone
    _demand(not missing, f"stored and never handled: {missing}", program)


def _demand(is_kept: bool, message: str, program: Program) -> None:
    if not is_kept:
        raise Violation(
            f"{message}. accepted={program.accepted} refused={program.refused} "
            f"unsure={program.unsure} begun={program.begun} finished={program.finished}"
        )
