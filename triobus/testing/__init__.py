"""The test kit: deterministic tests for programs that embed a bus."""

from triobus.testing._clock import hold_clock
from triobus.testing._crash import crash

__all__ = ["crash", "hold_clock"]
