"""Which subscriptions an event of the log goes to, and the event itself, made of its JSON."""

from typing import Any

import attrs

from triobus._durability.acknowledgement import wall_time
from triobus._durability.suspects import Suspects
from triobus._durability.unreadable import stand_in, unreadable
from triobus._errors import EventNotDecodable
from triobus._events import DomainEvent
from triobus._groups.subscriptions import Group, Subscription
from triobus.stores import EventStore
from triobus.stores._values import Attempts, Record

Plan = tuple[Subscription, ...]


@attrs.define(eq=False)
class Plans:
    """The plans of one group for the events of a log."""

    _group: Group
    _store: EventStore
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
            plan = self._plans[cls] = self._group._plan_for(cls)
        return plan

    def of_record(self, record: Record, row: Attempts | None) -> Plan:
        """Return the subscriptions that still get an event, given what the store has of it."""
        plan = self._of_type(record.event_type)
        if row is not None:
            if row.done:
                plan = tuple(s for s in plan if s.name not in row.done)
            if (row.attempts or row.delay) and plan and plan[0].name != row.subscription:
                # Its retry goes on, though one with a higher priority may have come since.
                plan = tuple(sorted(plan, key=lambda s: s.name != row.subscription))
        return plan

    def decoded(self, record: Record, plan: Plan, row: Attempts | None = None) -> tuple[Any, Plan]:
        """Return an event and who gets it; or what stands for one that cannot be read."""
        try:
            event = self._store.decode(record)
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
            classes = self._store.codec.classes(event_type) or [DomainEvent]
            wanted = {s for cls in classes for s in self._group._plan_for(cls)}
            plan = self._plans[event_type] = self._group._in_order(wanted)
        return plan
