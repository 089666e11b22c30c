"""Handlers that fail until they are cured, and their dead letters."""

from typing import Any

import trio

from tests.events import Noted
from triobus import DeadLetter, DomainEvent, EventBus, Group, Retry

ONCE = Retry(attempts=1)


class Patient:
    """A handler that fails until it is cured, and notes what it was called with.

    When it is well, it takes so many seconds.
    """

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds
        self.is_ill = True
        self.calls: list[int] = []

    async def __call__(self, event: Noted) -> None:
        self.calls.append(event.number)
        if self.is_ill:
            raise ValueError(f"number {event.number}")
        if self.seconds:
            await trio.sleep(self.seconds)


def patient_in(
    place: EventBus | Group, name: str = "patient", *, seconds: float = 0, **options: Any
) -> Patient:
    patient = Patient(seconds)
    options.setdefault("retry", ONCE)
    place.subscribe(Noted, patient, name=name, **options)
    return patient


async def publish(bus: EventBus, *events: DomainEvent) -> None:
    await bus.publish_many(events)
    await bus.wait_idle()


def numbers(letters: list[DeadLetter]) -> list[Any]:
    return [letter.event.number for letter in letters if isinstance(letter.event, Noted)]


def ids(letters: list[DeadLetter]) -> list[int]:
    return [letter.id for letter in letters]


async def three_letters(bus: EventBus, patient: Patient) -> list[DeadLetter]:
    await publish(bus, *[Noted(n, "a") for n in (1, 2, 3)])
    letters = await bus.dead_letters.list()
    assert patient.calls == numbers(letters) == [1, 2, 3]
    patient.calls.clear()
    patient.is_ill = False
    return letters


async def held(bus: EventBus, patient: Patient) -> list[DeadLetter]:
    """Three letters of one aggregate, the second and third held back; the patient is cured."""
    await publish(bus, Noted(1, "a"))
    patient.is_ill = False
    await publish(bus, Noted(2, "a"), Noted(3, "a"))
    assert patient.calls == [1]
    patient.calls.clear()
    return await bus.dead_letters.list()
