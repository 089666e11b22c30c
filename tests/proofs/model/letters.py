"""The model of dead letters: which there must be, with which error and how many attempts.

An event that is held back becomes a letter without any call that could be seen. Where that may have
happened it is not known until the letters are listed, or until a later event shows it.
"""

import math
from collections.abc import Iterable

import attrs

from tests.proofs.model.facts import Breach, Fact, LetterTruth

Key = tuple[str, str, int]
"""Group, subscription and number of the event."""
Version = tuple[int, str] | None
"""Attempts and error; None for a letter that is not there."""

HELD = (0, "HeldBack")
DIED = "ProcessDied"
UNSEEN = ("HeldBack", DIED)
"""Errors of letters that come without a call."""


@attrs.define(eq=False)
class Letter:
    """One dead letter."""

    fact: Fact
    attempts: int
    error: str
    id: int | None = None
    """Its id, once it has been listed."""
    is_replaying: bool = False
    tries: int = 0
    """Attempts of the replay."""
    was_handled: bool = False
    """Whether the replay has handled it."""
    is_running: bool = False
    due: float | None = None
    """When the next attempt of the replay is due, if it waits for one."""

    @property
    def version(self) -> Version:
        return self.attempts, self.error


@attrs.define(eq=False)
class Letters:
    """All dead letters of a bus, or of a store."""

    _breach: Breach
    kept: dict[Key, Letter] = attrs.field(factory=dict)
    gone: dict[Key, Letter] = attrs.field(factory=dict)
    """Those that were discarded, or that a replay handled."""
    open_ended: set[Key] = attrs.field(factory=set)
    """Those that may be there or not, for an attempt has ended while the bus did."""
    _held: dict[tuple[str, str, str | None], float] = attrs.field(factory=dict)
    """Until when each aggregate had a letter of a subscription, infinite while it has."""
    _versions: dict[Key, list[Version]] = attrs.field(factory=dict)
    """What each letter has been since the last commit, which may have it in its first version."""
    _marks: dict[Key, int] = attrs.field(factory=dict)

    def lane(self, group: str, name: str, key: str | None) -> list[tuple[Key, Letter]]:
        """Return the letters of an aggregate for a subscription."""
        return [
            (found, letter)
            for found, letter in self.kept.items()
            if found[:2] == (group, name) and letter.fact.key == key
        ]

    def is_replaying(self, group: str, name: str, letter: Letter) -> bool:
        """Whether another letter of the same aggregate and subscription is being replayed."""
        return any(
            key[:2] == (group, name) and other.fact.key == letter.fact.key and other.is_replaying
            for key, other in (*self.kept.items(), *self.gone.items())
        )

    def was_held(self, group: str, name: str, key: str | None, since: int) -> bool:
        """Whether an aggregate had a letter at some time since then."""
        return self._held.get((group, name, key), -math.inf) >= since

    def add(self, key: Key, fact: Fact, attempts: int, error: str, id_: int | None = None) -> None:
        """A handler has failed for good, or an event is held back."""
        self._note(key)
        self.kept[key] = Letter(fact, attempts, error, id_)
        self._held[(*key[:2], fact.key)] = math.inf
        self._versions[key].append((attempts, error))

    def fail_again(self, key: Key, letter: Letter, error: str) -> None:
        """A replay has failed for good."""
        is_kept = self.kept.get(key) is letter
        if is_kept:
            self._note(key)
        letter.attempts += letter.tries
        letter.error = error
        if is_kept:
            self._versions[key].append(letter.version)

    def remove(self, key: Key, now: int) -> None:
        """It was discarded, or a replay has handled it."""
        letter = self.kept.get(key)
        if letter is None:
            return
        self._note(key)
        del self.kept[key]
        self.gone[key] = letter
        self._versions[key].append(None)
        if not self.lane(*key[:2], letter.fact.key):
            self._held[(*key[:2], letter.fact.key)] = now

    def release(self, group: str) -> None:
        """Nothing of a group that has no letters any more holds an event back."""
        self._held = {key: until for key, until in self._held.items() if key[0] != group}

    def bury(self, key: Key) -> None:
        """It is recorded that it is gone."""
        if key not in self.kept:
            self._versions[key] = [None]
            self._marks.pop(key, None)

    # What is seen of them

    def learn(self, key: Key, fact: Fact, listed: LetterTruth) -> None:
        """Compare one that is listed with what there must be."""
        letter = self.kept.get(key)
        if letter is None:
            self._breach(f"{listed} is listed, and nothing is known of it")
        if (listed.attempts, listed.error) != letter.version and not letter.is_replaying:
            self._breach(f"{listed} is listed, and it must be {letter.version}")
        letter.id = listed.id

    def check_all_listed(self, listed: Iterable[LetterTruth]) -> None:
        """Check that the letters are those and no others."""
        found = {(letter.group, letter.name, letter.number) for letter in listed}
        missing = sorted(set(self.kept) - found)
        if missing:
            self._breach(f"dead letters are missing: {missing}")

    # What a store has of them

    def _note(self, key: Key) -> None:
        if key not in self._versions:
            letter = self.kept.get(key)
            self._versions[key] = [None if letter is None else letter.version]

    def commit_began(self) -> None:
        """What they are now will be stored."""
        self._marks = {key: len(versions) - 1 for key, versions in self._versions.items()}

    def commit_ended(self) -> None:
        """It is."""
        for key, mark in self._marks.items():
            del self._versions[key][:mark]
        self._marks = {}

    def may_be_stored(self, key: Key) -> list[Version]:
        """Return what a store may have of a letter after a crash."""
        letter = self.kept.get(key)
        return self._versions.get(key, [None if letter is None else letter.version])

    def restore(self, letters: Iterable[tuple[Key, Fact, LetterTruth]]) -> None:
        """Begin a life with what a store has."""
        self.kept.clear()
        self.gone.clear()
        self.open_ended.clear()
        self._versions.clear()
        self._marks.clear()
        self._held.clear()
        for key, fact, letter in letters:
            self.kept[key] = Letter(fact, letter.attempts, letter.error, letter.id)
            self._held[(*key[:2], fact.key)] = math.inf
