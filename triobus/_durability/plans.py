"""An event of the log on its way back: which subscriptions get it, and where it goes on."""

from collections.abc import Callable
from typing import Any

import attrs
import trio

from triobus._durability.acknowledgement import Acknowledgements
from triobus._durability.lanes import StoredLanes
from triobus._durability.sharing.share import Share
from triobus._durability.suspects import Suspects
from triobus._durability.unreadable import stand_in, unreadable
from triobus._errors import EventNotDecodable
from triobus._events import DomainEvent
from triobus._groups.delivery import Completion
from triobus._groups.retry import LONGEST_WISH
from triobus._groups.subscriptions import Group, Subscription
from triobus._groups.workers import GroupShell
from triobus._threads import wall_time
from triobus.stores import EventStore
from triobus.stores._values import Attempts, Row

Plan = tuple[Subscription, ...]


@attrs.define(eq=False)
class Plans:
    """The plans of one group for the events of a log."""

    _group: Group
    _store: EventStore
    _lanes: StoredLanes
    _acknowledgements: Acknowledgements | Share
    _around: Callable[[Plan], Plan] = attrs.field(default=tuple)
    """What is put around the handlers of a plan."""
    suspects: Suspects | None = None
    """What may have been in flight when the process died, if it did."""
    _plans: dict[type | str, Plan] = attrs.field(factory=dict)

    def forget(self) -> None:
        """Find all plans anew, for a subscription has come or gone."""
        self._plans.clear()

    def of_class(self, cls: type[DomainEvent]) -> Plan:
        """Return the subscriptions that get events of a class."""
        plan = self._plans.get(cls)
        if plan is None:
            plan = self._plans[cls] = self._around(self._group._plan_for(cls))
        return plan

    def wanted_by(self, record: Row) -> Plan | None:
        """Return who still gets an event; None if it is finished, or is now for want of them."""
        position = record.position
        if self._acknowledgements.is_finished(position):
            return None
        plan = self._of_record(record, self._acknowledgements.recovered_row(position))
        if plan:
            return plan
        completion = self._lanes.completions.pop(position, None)
        if completion is not None:
            completion.finished()
        self._acknowledgements.pass_over_read(position)
        return None

    def taken(self, record: Row, plan: Plan) -> tuple[Any, Plan, Completion | None]:
        """Return an event, who gets it and which publisher waits for its end."""
        row = self._acknowledgements.recovered_row(record.position)
        event, plan = self.decoded(record, plan, row)
        return event, plan, self._lanes.completions.pop(record.position, None)

    def restore_delay(self, shell: GroupShell, position: int, plan: Plan) -> None:
        """Let the delivery that was added last wait for the rest of its delay, if it had one."""
        row = self._acknowledgements.forget_recovered(position)
        if row is None:
            return
        is_same = plan[0].name == row.subscription
        # Whatever a damaged store says: its handler may have asked for a delay itself.
        longest = min(row.delay, max(plan[0].retry.longest_delay, LONGEST_WISH))
        wait = min(row.due_at - wall_time(), longest) if is_same else 0
        due = trio.current_time() + wait if wait > 0 else None
        self._lanes.restore_delay(position, row.attempts if is_same else 0, due, row.done)
        if due is not None:
            shell.expect(due)

    def _of_record(self, record: Row, row: Attempts | None) -> Plan:
        """Return the subscriptions that still get an event, given what the store has of it."""
        plan = self._of_type(record.event_type)
        if row is not None:
            if row.done:
                plan = tuple(s for s in plan if s.name not in row.done)
            if (row.attempts or row.delay) and plan and plan[0].name != row.subscription:
                # Its retry goes on, though one with a higher priority may have come since.
                plan = tuple(sorted(plan, key=lambda s: s.name != row.subscription))
        return plan

    def decoded(self, record: Row, plan: Plan, row: Attempts | None = None) -> tuple[Any, Plan]:
        """Return an event and who gets it; or what stands for one that cannot be read."""
        try:
            event = self._store._decode(record)
            if self.suspects is not None:
                plan = self.suspects.plan(
                    record.position, record.aggregate_id, plan, row, wall_time()
                )
            return event, plan
        except EventNotDecodable as error:
            return unreadable(record), tuple(stand_in(s, error) for s in plan)

    def _of_type(self, event_type: str) -> Plan:
        plan = self._plans.get(event_type)
        if plan is None:
            classes = self._store._codec.classes(event_type) or [DomainEvent]
            wanted = {s for cls in classes for s in self._group._plan_for(cls)}
            plan = self._plans[event_type] = self._around(self._group._in_order(wanted))
        return plan
