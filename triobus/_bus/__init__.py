"""The bus: what a program declares and calls, and one life of it at a time."""

from triobus._bus.bus import EventBus
from triobus._bus.life import StopReport

__all__ = ["EventBus", "StopReport"]
