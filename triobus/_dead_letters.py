"""Dead letters in memory: what was given up, kept until it is replayed or discarded."""

import traceback
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import attrs

from triobus._errors import UnknownDeadLetter
from triobus._events import DomainEvent

KEPT = 1000
"""How many dead letters a bus without a store keeps; the oldest make room for new ones."""

_MESSAGE_LENGTH = 4 * 1024
_TRACEBACK_LENGTH = 16 * 1024


@attrs.frozen(kw_only=True)
class DeadLetter:
    """An event that a handler failed for good, with the error of the last attempt."""

    id: int
    """What `replay` and `discard` take; later letters have higher ones."""
    event: DomainEvent
    """The event as it was delivered."""
    group: str
    """The name of the group."""
    subscription: str
    """The name of the subscription whose handler failed."""
    attempts: int
    """Attempts so far, replays included; 0 for an event that was held back."""
    first_failed_at: datetime
    """When it became a dead letter; UTC."""
    last_failed_at: datetime
    """When it last failed; UTC."""
    error_type: str
    """The name of the error's class."""
    message: str
    """What the error said, cut at 4,096 characters."""
    traceback: str
    """The traceback without local variables; the last 16 KiB of it."""


@attrs.define(eq=False)
class DeadLetterBox:
    """The dead letters of a bus, and which aggregates they hold back."""

    replaying: set[int] = attrs.field(factory=set)
    """The ids of the letters that are on their way to their handlers again."""
    dropped: int = 0
    """How many letters had to make room for newer ones."""
    _last_id: int = 0
    _letters: dict[int, DeadLetter] = attrs.field(factory=dict)
    _by_lane: dict[tuple[str, str, str | None], dict[int, None]] = attrs.field(factory=dict)

    def __len__(self) -> int:
        return len(self._letters)

    def __contains__(self, letter_id: int) -> bool:
        return letter_id in self._letters

    def find(
        self, group: str | None = None, aggregate_id: str | None = None
    ) -> Iterable[DeadLetter]:
        """Yield the letters of a group, an aggregate, both or all; the oldest first."""
        for letter in self._letters.values():
            if group is not None and letter.group != group:
                continue
            if aggregate_id is not None and letter.event.aggregate_id != aggregate_id:
                continue
            yield letter

    def get(self, letter_id: int) -> DeadLetter:
        """Return a letter by its id, else raise `UnknownDeadLetter`."""
        try:
            return self._letters[letter_id]
        except KeyError:
            raise UnknownDeadLetter(
                f"there is no dead letter {letter_id!r}: it never was, or it has been replayed, "
                f"discarded or dropped; dead_letters.list() shows the {len(self)} there are"
            ) from None

    def first_of(self, group: str, subscription: str, aggregate_id: str | None) -> int | None:
        """Return the id of the oldest letter of an aggregate for a subscription, or None."""
        lane = self._by_lane.get((group, subscription, aggregate_id))
        return next(iter(lane)) if lane else None

    def add(
        self,
        event: DomainEvent,
        group: str,
        subscription: str,
        attempts: int,
        error: Exception,
        now: datetime,
    ) -> DeadLetter:
        """Keep a new letter, dropping the oldest when there are too many."""
        if len(self._letters) >= KEPT:
            self.remove(next(iter(self._letters)))
            self.dropped += 1
        self._last_id += 1
        letter = DeadLetter(
            id=self._last_id,
            event=event,
            group=group,
            subscription=subscription,
            attempts=attempts,
            first_failed_at=now,
            last_failed_at=now,
            **_described(error),
        )
        self._letters[letter.id] = letter
        self._by_lane.setdefault(_lane(letter), {})[letter.id] = None
        return letter

    def add_failure(self, letter_id: int, attempts: int, error: Exception, now: datetime) -> None:
        """Note that a replay failed again, unless the letter was removed meanwhile."""
        letter = self._letters.get(letter_id)
        if letter is not None:
            self._letters[letter_id] = attrs.evolve(
                letter,
                attempts=letter.attempts + attempts,
                last_failed_at=now,
                **_described(error),
            )

    def remove(self, letter_id: int) -> None:
        """Forget a letter, unless that was done before."""
        letter = self._letters.pop(letter_id, None)
        if letter is not None:
            lane = self._by_lane[_lane(letter)]
            del lane[letter_id]
            if not lane:
                del self._by_lane[_lane(letter)]


def _described(error: Exception) -> dict[str, Any]:
    """Return the fields of a letter that tell about the error."""
    return {
        "error_type": type(error).__name__,
        "message": _message(error),
        "traceback": _traceback(error),
    }


def _message(error: Exception) -> str:
    """Return what an error says, cut, even if its `__str__` raises."""
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  # a user's __str__ may raise anything
        return f"<str() of this {type(error).__name__} raised an error itself>"
    return message[:_MESSAGE_LENGTH]


def _lane(letter: DeadLetter) -> tuple[str, str, str | None]:
    return letter.group, letter.subscription, letter.event.aggregate_id


def _traceback(error: Exception) -> str:
    lines = traceback.TracebackException.from_exception(error).format()
    text = "".join(_shortened(line) for line in lines)
    return text.encode("utf-8", "backslashreplace")[-_TRACEBACK_LENGTH:].decode("utf-8", "ignore")


def _shortened(line: str) -> str:
    return line if len(line) <= _MESSAGE_LENGTH else line[:_MESSAGE_LENGTH] + "...\n"
