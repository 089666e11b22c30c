"""An instrument that writes down what it is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from triobus import Instrument


class Journal(Instrument):
    """Writes down every hook as a tuple of its name and what is worth comparing."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def only(self, *hooks: str) -> list[tuple[Any, ...]]:
        """Return the lines of some hooks."""
        return [line for line in self.lines if line[0] in hooks]

    def added_to(self, bus):
        self.lines.append(("added_to", bus))

    def removed_from(self, bus):
        self.lines.append(("removed_from", bus))

    @contextmanager
    def publishing(self, events) -> Iterator[None]:
        self.lines.append(("publishing", [event.number for event in events]))
        try:
            yield
        except BaseException as error:
            self.lines.append(("not published", type(error).__name__))
            raise
        self.lines.append(("left publishing",))

    def published(self, event, position):
        self.lines.append(("published", event.number, position))

    def attempt_started(self, delivery):
        self.lines.append(("attempt_started", *_told(delivery)))

    @contextmanager
    def handling(self, delivery) -> Iterator[None]:
        self.lines.append(("handling", *_told(delivery)))
        try:
            yield
        finally:
            self.lines.append(("left", *_told(delivery)))

    def attempt_finished(self, delivery, seconds, error):
        self.lines.append(("attempt_finished", *_told(delivery), seconds, _name(error)))

    def retry_scheduled(self, delivery, due):
        self.lines.append(("retry_scheduled", *_told(delivery), due))

    def settled(self, delivery):
        self.lines.append(("settled", *_told(delivery)))

    def dead_lettered(self, letter):
        self.lines.append(
            ("dead_lettered", letter.id, letter.event.number, letter.attempts, letter.error_type)
        )

    def committed(self, events, seconds, error):
        self.lines.append(("committed", [event.number for event in events], seconds, _name(error)))

    def group_paused(self, group):
        self.lines.append(("group_paused", group))

    def group_resumed(self, group):
        self.lines.append(("group_resumed", group))


def _told(delivery):
    return delivery.event.number, delivery.group, delivery.subscription, delivery.attempt


def _name(error):
    return None if error is None else type(error).__name__
