"""What the lives of a program on one store have reported, and what must be true of the store.

After each life the store is looked at, in a copy, so that the next life finds what the kill left.
In the order in which they are checked:

1. What was accepted is in the log at its position; the log has no gaps, every event once, nothing
   that was refused, and every checksum is right.
2. What a group had finished before the last good commit began is recorded: handled events as
   settled, failed attempts with their number, failures for good as dead letters, replayed dead
   letters as gone. What is recorded was finished before the last commit began.
3. In each aggregate a group tried exactly the events that it had not settled, in the order of
   their positions, each after the one before was finished, with the attempts it had left.
4. At the end each group has handled everything, dead letters by replay, and nothing is left beside
   the file.

An event that a group handles again is one that 2 and 3 allow: its end was not recorded, for no
commit that was good had begun by then.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs

from tests.proofs.torture.contents import Contents, contents
from tests.proofs.torture.program import AGGREGATES, ATTEMPTS, GROUPS, fails
from tests.proofs.torture.violation import Kind, Violation

Step = tuple[str, str, int, int]
"""What happened, in which group, to which event, at which attempt."""


@attrs.define
class Life:
    """What one life has reported."""

    phase: str = "starting"
    is_committing: bool = False
    is_done: bool = False
    steps: list[Step] = attrs.field(factory=list)
    begun: int = 0
    """How many steps there were when the last commit began."""
    ended: int = 0
    """How many when the last one began that was good."""
    refused: set[int] = attrs.field(factory=set)
    """What was refused and not published again."""
    operations: list[str] = attrs.field(factory=list)
    """What was done to files, if that is reported."""


@attrs.define
class History:
    """The lives of one store, one after the other."""

    accepted: dict[int, int] = attrs.field(factory=dict)
    """Positions by number."""
    uncertain: set[int] = attrs.field(factory=set)
    """What was being published and neither accepted nor refused."""
    refused: set[int] = attrs.field(factory=set)
    """What was ever refused."""
    handled: set[tuple[str, int]] = attrs.field(factory=set)
    repeated: int = 0
    """How often an event was handled again."""
    life: Life = attrs.field(factory=Life)
    _before: Contents = attrs.field(factory=Contents)

    def begin(self) -> None:
        """Begin a life."""
        self.life = Life()

    def note(self, words: list[str]) -> None:
        """Take up a line of the life."""
        life = self.life
        kind, rest = words[0], words[1:]
        if kind in ("attempt", "failed", "handled", "replaying", "replayed"):
            group, number, *attempt = rest
            life.steps.append((kind, group, int(number), int(attempt[0]) if attempt else 0))
        elif kind == "committing":
            life.is_committing = True
            life.begun = len(life.steps)
        elif kind == "committed":
            life.is_committing = False
            life.ended = life.begun
        elif kind in ("publishing", "accepted", "refused", "unknown"):
            self._note_publishing(kind, int(rest[0]), rest[1:])
        elif kind == "phase":
            life.phase = rest[0]
        elif kind == "operation":
            life.operations.append(" ".join(rest))
        elif kind == "done":
            life.is_done = True

    def _note_publishing(self, kind: str, number: int, rest: list[str]) -> None:
        if kind == "accepted":
            position = int(rest[0])
            before = self.accepted.setdefault(number, position)
            if before != position:
                raise Violation(f"{number} was accepted at {before} and again at {position}")
        if kind == "refused":
            self.life.refused.add(number)
            self.refused.add(number)
        else:
            self.life.refused.discard(number)
        if kind == "publishing":
            self.uncertain.add(number)
        elif kind != "unknown":
            self.uncertain.discard(number)

    def look_at(self, path: Path) -> None:
        """See after a life what it has left. Raises `Violation`."""
        after = contents(path)
        self._check_log(after)
        for group in GROUPS:
            steps = [step for step in self.life.steps if step[1] == group]
            self._check_record(group, after)
            self._check_order(group, steps, after)
            self._check_replays(group, steps, after)
        handled = [(g, n) for kind, g, n, _ in self.life.steps if kind in ("handled", "replayed")]
        self.repeated += sum(map(self.handled.__contains__, handled))
        self.handled.update(handled)
        self._before = after

    def look_at_the_end(self, path: Path) -> None:
        """See after the last life that everything was dealt with."""
        for group in GROUPS:
            numbers = set(self._before.numbers.values())
            missing = numbers - {n for name, n in self.handled if name == group}
            missing |= numbers - {n for name, n in self._before.settled if name == group}
            if missing:
                raise Violation(f"group {group!r} has not handled {sorted(missing)}", "lost")
        if self._before.letters or self._before.attempts:
            raise Violation(f"left were {self._before.letters} and {self._before.attempts}")
        beside = sorted(entry.name for entry in path.parent.iterdir())
        if beside != [path.name]:
            raise Violation(f"after the end there are {beside}")

    def _check_log(self, after: Contents) -> None:
        numbers = after.numbers
        for number, position in self.accepted.items():
            if numbers.get(position) != number:
                found = numbers.get(position)
                raise Violation(f"{number} was accepted at {position}, which has {found}", "lost")
        if sorted(numbers) != list(range(1, len(numbers) + 1)):
            raise Violation(f"the positions have gaps: {sorted(numbers)}", "lost")
        twice = [number for number, count in Counter(numbers.values()).items() if count > 1]
        if twice:
            raise Violation(f"the log has {twice} twice", "repeated")
        strange = set(numbers.values()) - self.accepted.keys() - self.uncertain
        if strange:
            was = "refused" if strange & self.life.refused else "never published"
            raise Violation(f"the log has {sorted(strange)}, which was {was}")

    def _check_record(self, group: str, after: Contents) -> None:
        """See that what was finished is recorded, and nothing else is."""
        life, before = self.life, self._before
        certain = _Finished.after(group, life.steps[: life.ended])
        possible = _Finished.after(group, life.steps[: life.begun])
        settled = {number for name, number in after.settled if name == group}
        settled_before = {number for name, number in before.settled if name == group}
        letters = {number for name, number in after.letters if name == group}
        letters_before = {number for name, number in before.letters if name == group}
        who = f"group {group!r}"
        died = self._died_in(group)
        _none(
            (certain.handled | certain.given_up) - settled,
            f"{who} finished {{}}, and a later commit left that out",
            "repeated",
        )
        _none(
            settled - settled_before - possible.handled - possible.given_up - died,
            f"{who} has {{}} as settled and never finished it",
            "lost",
        )
        _none(settled_before - settled, f"{who} has {{}} as settled no more", "repeated")
        _none(
            (letters_before | certain.given_up) - letters - possible.replayed,
            f"{who} has lost the dead letters {{}}",
            "lost",
        )
        _none(
            letters - letters_before - possible.given_up - died,
            f"{who} has dead letters {{}} that it never gave up",
            "other",
        )
        _none(certain.replayed & letters, f"{who} replayed {{}}, still a dead letter", "repeated")
        for number, attempts in certain.failed.items():
            if number not in settled and after.attempts.get((group, number), 0) < attempts:
                raise Violation(f"group {group!r} forgot attempt {attempts} of {number}")

    def _check_order(self, group: str, steps: Iterable[Step], after: Contents) -> None:
        """See that each aggregate was gone through in order, one event and attempt at a time."""
        lanes = defaultdict(list)
        for kind, _, number, attempt in steps:
            if kind in ("attempt", "failed", "handled"):
                lanes[number % AGGREGATES].append((kind, number, attempt))
        for lane, taken in lanes.items():
            due = [
                number
                for _, number in sorted(after.numbers.items())
                if number % AGGREGATES == lane and (group, number) not in self._before.settled
            ]
            tried = list(dict.fromkeys(number for _, number, _ in taken))
            due = [n for n in due if n in tried or n not in self._died_in(group)]
            again = [number for number in tried if (group, number) in self._before.settled]
            if again:
                raise Violation(
                    f"group {group!r} tried {again} again, which was settled", "repeated"
                )
            if set(tried) - set(due):
                raise Violation(f"group {group!r} tried {tried} of {due}: never stored", "lost")
            first = {
                number: attempt for kind, number, attempt in reversed(taken) if kind == "attempt"
            }
            wanted = list(self._expected(group, due[: len(tried)], first))
            if taken != wanted[: len(taken)]:
                raise Violation(
                    f"group {group!r} went through aggregate {lane} as {taken}, not {wanted}",
                    "reordered",
                )

    def _expected(
        self, group: str, due: Iterable[int], first: Mapping[int, int]
    ) -> Iterable[tuple[str, int, int]]:
        """Yield what a life does with events of one aggregate, of which it has seen some attempts.

        The attempt in which the program was killed counts, if it is known which it was.
        """
        for number in due:
            made = self._before.attempts.get((group, number), 0)
            if (group, number) in self._before.begun and first.get(number) == made + 2:
                made += 1
            for attempt in range(made + 1, ATTEMPTS + 1):
                yield "attempt", number, attempt
                if not fails(number, attempt):
                    yield "handled", number, 0
                    break
                yield "failed", number, attempt

    def _died_in(self, group: str) -> set[int]:
        """Return what may be a dead letter untried, for the program was killed in all attempts."""
        made = self._before.attempts.items()
        begun = self._before.begun
        return {
            key[1] for key, count in made if key[0] == group and count + (key in begun) >= ATTEMPTS
        }

    def _check_replays(self, group: str, steps: Iterable[Step], after: Contents) -> None:
        positions = {number: position for position, number in after.numbers.items()}
        there = {number for name, number in self._before.letters if name == group}
        there |= self._died_in(group)
        lanes = defaultdict(list)
        for kind, _, number, attempt in steps:
            if kind == "failed" and attempt == ATTEMPTS:
                there.add(number)
            elif kind == "replayed":
                if number not in there:
                    raise Violation(f"group {group!r} replayed {number} again", "repeated")
                there.discard(number)
                lanes[number % AGGREGATES].append(positions.get(number, 0))
        for lane, replayed in lanes.items():
            if replayed != sorted(replayed):
                raise Violation(f"group {group!r} replayed {lane} as {replayed}", "reordered")


def _none(numbers: set[int], message: str, kind: Kind) -> None:
    if numbers:
        raise Violation(message.format(sorted(numbers)), kind)


@attrs.frozen
class _Finished:
    """What a group had come to at some moment of a life, by the numbers of events."""

    handled: set[int]
    given_up: set[int]
    replayed: set[int]
    failed: dict[int, int]
    """With the number of attempts."""

    @classmethod
    def after(cls, group: str, steps: Iterable[Step]) -> "_Finished":
        found = cls(set(), set(), set(), {})
        for kind, name, number, attempt in steps:
            if name != group:
                continue
            if kind == "handled":
                found.handled.add(number)
            elif kind == "replayed":
                found.replayed.add(number)
            elif kind == "failed" and attempt == ATTEMPTS:
                found.given_up.add(number)
            elif kind == "failed":
                found.failed[number] = attempt
        return found
