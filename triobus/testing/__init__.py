"""The test kit: deterministic tests for programs that embed a bus.

Nothing of it is imported by `triobus` itself.
"""

from triobus.testing._clock import hold_clock
from triobus.testing._cluster import Cluster
from triobus.testing._crash import crash
from triobus.testing._doubles import Call, FlakyHandler, SlowHandler
from triobus.testing._explore import (
    Exploration,
    ExplorationFailed,
    StepFailed,
    cancel_at_every_step,
    explore,
)
from triobus.testing._nodes import cut_off, hang, reconnect
from triobus.testing._promises import PromiseBroken
from triobus.testing._record import (
    RecordedAttempt,
    RecordedDeadLetter,
    RecordedDelivery,
    RecordedEvent,
    RecordedRetry,
    Recording,
    record,
)
from triobus.testing._snapshots import EventChanged
from triobus.testing._world import Faults, PlannedFailure, ProgramHangs, World

__all__ = [
    "Call",
    "Cluster",
    "EventChanged",
    "Exploration",
    "ExplorationFailed",
    "Faults",
    "FlakyHandler",
    "PlannedFailure",
    "ProgramHangs",
    "PromiseBroken",
    "RecordedAttempt",
    "RecordedDeadLetter",
    "RecordedDelivery",
    "RecordedEvent",
    "RecordedRetry",
    "Recording",
    "SlowHandler",
    "StepFailed",
    "World",
    "cancel_at_every_step",
    "crash",
    "cut_off",
    "explore",
    "hang",
    "hold_clock",
    "reconnect",
    "record",
]

# Tracebacks and help show where users import these from.
for _name in __all__:
    globals()[_name].__module__ = __name__
del _name
