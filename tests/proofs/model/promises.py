"""A model of what a bus promises, in plain data. It knows no Trio, no disk and nothing of the bus.

It is told what happens: what is published and how that ends, which handler is called with what, how
it ends, when commits begin and end, what a store has when its bus is gone. It says at once when a
promise is broken:

1. What was accepted goes to every subscription that it was for, until that is done with it; nothing
   goes anywhere that `publish` raised for, that nobody wants, or that was done before.
2. In a group an aggregate's events are taken one at a time, in the order of publication, retries
   included; in a delivery the handlers by their ranks, each when the one before is done.
3. Attempts are counted from 1 without gaps, across restarts too; none comes before it is due.
4. Dead letters are those of handlers that failed for good, and what `hold` keeps back behind them.
5. What a store has as finished is so, and it has what was finished before its last commit began.
6. A group with a free worker leaves nothing that could be handled lying about.
7. Statistics are what was seen.
8. What was published for later comes when it is due, once, unless it was taken back.
9. A paused group calls no handler; one that was reset begins anew behind that position.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

import attrs

from tests.proofs.model.facts import (
    Broken,
    Counted,
    Fact,
    GroupTerms,
    Known,
    LetterTruth,
    StoreTruth,
    Terms,
    Told,
)
from tests.proofs.model.group import Delivery, GroupModel
from tests.proofs.model.letters import UNSEEN, Key, Letter, Letters
from tests.proofs.model.schedule import Schedule
from triobus.stores._values import NOT_COUNTED


@attrs.define(eq=False)
class Promises:
    """What all buses of one program have promised, and whether they keep it."""

    has_store: bool
    first: Broken | None = None
    """The first promise that was broken."""
    known: dict[int, Known] = attrs.field(factory=dict)
    groups: dict[str, GroupModel] = attrs.field(factory=dict)
    letters: Letters = attrs.field(init=False)
    schedule: Schedule = attrs.field(init=False)
    deliveries: int = 0
    """How many attempts were seen."""
    accepted: int = 0
    """How many events were."""
    _tick: int = 0
    _new: set[int] = attrs.field(factory=set)
    """Events accepted in this life."""
    _is_uncertain: bool = False
    """Whether it cannot be known what was accepted in this life."""
    _was_crash: bool = False
    """Whether the life before was ended by a crash."""
    _ending_at: float | None = None
    _changed_at: float = 0.0
    _orders: set[tuple[int, int]] = attrs.field(factory=set)
    """Pairs of events of one aggregate in the order in which a group has handled them."""
    _finishing: dict[str, set[int]] = attrs.field(factory=dict)
    """What was finished when the commit that is on its way began."""
    _replayed: dict[tuple[str, str, str | None], set[int]] = attrs.field(factory=dict)
    """Whose letters are being replayed: for a lane, the numbers of their events."""
    _followed: int = 0
    """How many other events of these lanes were handled meanwhile."""
    _recorded: dict[str, set[int]] = attrs.field(factory=dict)
    """What must be recorded, for it was finished before the last commit began."""

    def __attrs_post_init__(self) -> None:
        self.letters = Letters(self.breach)
        self.schedule = Schedule(self.breach)

    def breach(self, message: str) -> NoReturn:
        """A promise was broken."""
        if self.first is None:
            self.first = Broken(message)
        raise Told(message)

    def _now(self) -> int:
        self._tick += 1
        return self._tick

    # Publishing

    def publishing(self, facts: Sequence[Fact]) -> None:
        """Somebody begins to publish events, together."""
        begun = self._now()
        for place, fact in enumerate(facts):
            known = self.known.get(fact.number)
            self.schedule.published_at_once(fact.number)
            if known is None or known.is_refused:
                self.known[fact.number] = Known(fact, begun, place)
            else:
                known.is_shared = True

    def publishing_later(self, fact: Fact, due: float) -> None:
        """Somebody begins to publish an event that is due at that time."""
        known = self.known.get(fact.number)
        is_there = known is not None and not known.is_refused
        if known is None or not is_there:
            known = self.known[fact.number] = Known(fact, self._now(), 0)
        known.is_shared |= is_there
        self.schedule.publishing(known, due, is_free=is_there)

    def published_later(self, number: int, position: int | None, now: float) -> None:
        """It was accepted."""
        self.schedule.published(number, position, now)

    def not_published_later(self, number: int, *, is_certain: bool) -> None:
        """Publishing it has raised; if that is certain, it never comes."""
        self.not_published([number], is_certain=is_certain)
        if self.known[number].is_refused:
            self.schedule.refused(number)

    def withdrawn(self, number: int, now: float, *, was_waiting: bool, is_told: bool) -> None:
        """It was to be taken back, and the bus has told whether it was."""
        self.schedule.withdrawn(number, now, was_waiting=was_waiting, is_told=is_told)

    def perhaps_withdrawn(self, number: int) -> None:
        """Taking it back was cut off."""
        self.schedule.uncertain(number)
        self._is_uncertain = True

    def _take_what_came(self, now: float) -> None:
        """Take what was due before now for accepted: nobody else tells of it."""
        for known in self.schedule.come(now):
            if known.returned is None:
                known.returned = self._now()
                self._new.add(known.fact.number)
                self.accepted += 1
        self._is_uncertain |= self.schedule.is_open(now)

    def published(
        self, numbers: Sequence[int], positions: Sequence[int | None], now: float
    ) -> None:
        """They were accepted."""
        returned = self._now()
        self._changed_at = now
        for number, position in zip(numbers, positions, strict=True):
            known = self.known[number]
            if position is None and self.has_store:
                self.breach(f"{number} was accepted without a position")
            if known.position not in (None, position):
                self.breach(f"{number} was at {known.position}, and is at {position}")
            if known.returned is None:
                known.returned = returned
                known.is_refused = False
                self._new.add(number)
                self.accepted += 1
            known.position = position

    def not_published(self, numbers: Sequence[int], *, is_certain: bool) -> None:
        """Publishing them has raised; if that is certain, no handler may ever see them."""
        for number in numbers:
            known = self.known[number]
            if known.returned is not None:
                continue
            if not is_certain or known.is_shared:
                known.is_uncertain = self._is_uncertain = True
                continue
            for group in self.groups.values():
                delivery = group.deliveries.get(number)
                if delivery is not None and delivery.called:
                    self.breach(f"{number} was delivered, and publishing it has raised")
            known.is_refused = True

    def outcome(self, number: int, results: Iterable[str], errors: Iterable[str]) -> None:
        """Somebody has waited for an event, and was told what its handlers made of it."""
        if self.known[number].is_shared:
            return  # whoever publishes what is there already does not wait for handlers
        told = {*results, *errors}
        for group in self.groups.values():
            known = self.known[number]
            if group.is_resetting or group.reset_at > known.begun:
                continue  # what it had handled is forgotten, or it was passed over
            for name, member in group.members.items():
                is_letter = (group.terms.name, name, number) in self.letters.kept
                if name in results and (is_letter or not group.is_done(name, number)):
                    self.breach(f"{name} is said to have handled {number}, and has not")
                is_asked = member.since < known.begun and group.owes(member, known) == "owed"
                if is_asked and name not in told:
                    self.breach(f"the outcome of {number} says nothing of {name}")

    # Attempts

    def attempt_began(
        self,
        key: tuple[str, str],
        fact: Fact,
        attempt: int,
        position: int | None,
        now: float,
    ) -> None:
        """A handler was called, which a group and a name identify."""
        self.deliveries += 1
        self._changed_at = now
        known = self.known.get(fact.number)
        if known is None or known.is_refused:
            self.breach(f"{key} was called with {fact.number}, which was not accepted")
        if fact != known.fact:
            self.breach(f"{key} was called with {fact}, and published was {known.fact}")
        if (position is None) == self.has_store or known.position not in (None, position):
            self.breach(f"{fact.number} is said to be at {position}, and is at {known.position}")
        self.schedule.check_due(fact, now)
        known.position = position
        self._check_same_order(key[0], known)
        self.groups[key[0]].attempt_began(key[1], known, attempt, now)

    def _check_same_order(self, group: str, known: Known) -> None:
        """Check that all groups handle an aggregate in one order, if positions do not say so."""
        model, number = self.groups[group], known.fact.number
        is_first = number not in model.deliveries or not model.deliveries[number].called
        if self.has_store or known.fact.key is None or not (model.terms.is_ordered and is_first):
            return
        for other, delivery in model.deliveries.items():
            if self.known[other].fact.key == known.fact.key and delivery.called:
                if (number, other) in self._orders:
                    self.breach(f"groups have handled {number} and {other} in different orders")
                self._orders.add((other, number))

    def attempt_ended(
        self, key: tuple[str, str], number: int, error: str | None, now: float
    ) -> None:
        """It has returned, or failed with an error."""
        self._changed_at = now
        chosen = self._replayed.get((*key, self.known[number].fact.key))
        self._followed += error is None and chosen is not None and number not in chosen
        is_ending = self._ending_at is not None and now >= self._ending_at
        self.groups[key[0]].attempt_ended(
            key[1], self.known[number], error, now, self._now(), is_ending=is_ending
        )

    def attempt_was_cancelled(self, key: tuple[str, str], number: int, now: float) -> None:
        """It was cancelled, and not by its timeout."""
        if self._ending_at is None or now < self._ending_at:
            self.breach(f"{key} was cancelled while it had {number}, and nothing was ending")
        self.groups[key[0]].attempt_was_cancelled(key[1], self.known[number])

    # Pausing and resetting

    def pausing(self, name: str) -> None:
        """A group is about to be paused: it need not begin anything any more."""
        self.groups[name].is_pausing = True

    def paused(self, name: str) -> None:
        """A group is paused, and none of its handlers runs."""
        group = self.groups[name]
        if group.running:
            self.breach(f"{name} is paused, and {group.running} of its handlers run")
        group.is_paused = True

    def resuming(self, name: str, now: float) -> None:
        """It is about to go on."""
        self.groups[name].is_pausing = self.groups[name].is_paused = False
        self._changed_at = now

    def resetting(self, name: str) -> None:
        """It is about to begin anew behind a position."""
        group = self.groups[name]
        group.is_resetting, group.reset_at = True, self._now()

    def not_reset(self, name: str) -> None:
        """It was not, for certain."""
        self.groups[name].is_resetting = False

    def was_reset(self, name: str, offset: int) -> None:
        """Everything behind that position is owed again, and nothing else is left of it."""
        self.groups[name].begin_anew(offset, self._now())
        self._recorded.pop(name, None)
        self._finishing.pop(name, None)

    # Reading and listening

    def read(self, places: Sequence[tuple[int, int]]) -> None:
        """Positions and numbers were read from the store, while its bus runs."""
        if [position for position, _ in places] != [*range(1, len(places) + 1)]:
            self.breach(f"the positions that were read are {places}")
        for position, number in places:
            known = self.known.get(number)
            if known is None or known.position not in (None, position):
                self.breach(f"{number} was read at {position}, and is {known}")

    def heard(self, numbers: Sequence[int]) -> None:
        """A listener has heard events, the last one just now."""
        known = self.known.get(numbers[-1])
        if known is None or (known.is_refused and not known.is_uncertain):
            self.breach(f"{numbers[-1]} was heard, and was not accepted")
        if self.has_store and numbers[-1] in numbers[:-1]:
            self.breach(f"{numbers[-1]} was heard twice: {numbers}")

    # Groups and dead letters

    def group_made(self, terms: GroupTerms, truth: StoreTruth | None) -> None:
        """A group is there, as its store has it."""
        model = GroupModel(terms, self.has_store, self.known, self.letters, self.breach)
        self.groups[terms.name] = model
        model.truth = None if truth is None else truth.groups.get(terms.name)
        if truth is not None and model.truth is not None:
            model.settled = {truth.log[position - 1] for position in model.truth.settled}
            begun = [row for group in truth.groups.values() for row in group.rows if row.is_begun]
            for row in model.truth.rows:
                # The process has died in an attempt. If it can only have been this one, it counts.
                is_counted = self._was_crash and row.due == NOT_COUNTED and begun == [row]
                attempts = row.attempts + is_counted
                delivery = Delivery(set(row.done), {row.name: attempts})
                if row.is_begun and self._was_crash:
                    delivery.blamed = row.name
                if attempts:
                    delivery.due[row.name] = row.due
                    delivery.first = row.name
                model.deliveries[row.number] = delivery

    def subscribed(self, terms: Terms, *, is_start: bool = False) -> None:
        """A subscription was made."""
        self.groups[terms.group].subscribe(terms, self._now(), is_start=is_start)

    def replaying(self, keys: Iterable[Key]) -> dict[Key, Letter]:
        """Dead letters are being replayed; return them, for `replayed`."""
        letters = {key: self.letters.kept[key] for key in keys if key in self.letters.kept}
        for letter in letters.values():
            letter.is_replaying, letter.tries, letter.was_handled = True, 0, False
        self._replayed = {(*key[:2], letter.fact.key): set() for key, letter in letters.items()}
        for key, letter in letters.items():
            self._replayed[(*key[:2], letter.fact.key)].add(key[2])
        self._followed = 0
        return letters

    def replayed(self, letters: Mapping[Key, Letter], count: int) -> None:
        """All is done that there was to do, and the bus says how many were handled."""
        handled = [key for key, letter in letters.items() if letter.was_handled]
        # What is held back behind them meanwhile goes with them, or comes as any event.
        if not len(handled) <= count <= len(handled) + self._followed:
            self.breach(f"a replay says that it has handled {count}, and handled were {handled}")
        if self._followed:
            for key in letters:
                self.groups[key[0]].has_changed = self.groups[key[0]].has_unseen = True
        self._replayed = {}
        for letter in self.letters.kept.values():
            letter.is_replaying &= letter in letters.values()
        for key, letter in letters.items():
            self.groups[key[0]].replayed += 1
            if self.letters.kept.get(key) is letter:
                self._check_tried(key, letter)
                letter.is_replaying = False
            else:
                # Discarded, it may have been no delivery at all.
                self.groups[key[0]].has_changed |= not letter.was_handled
                letter.is_replaying = False

    def _check_tried(self, key: Key, letter: Letter) -> None:
        """Check that a letter which a replay has not handled was tried, or could not be."""
        member = self.groups[key[0]].members.get(key[1])
        if letter.tries or member is None:
            return
        lane = self.letters.lane(key[0], key[1], letter.fact.key)
        if not (member.terms.hold and letter.fact.key is not None and len(lane) > 1):
            self.breach(f"{key} was to be replayed, and was not tried")

    def not_replayed(self, letters: Mapping[Key, Letter]) -> None:
        """It was refused before it began."""
        for letter in letters.values():
            letter.is_replaying = False

    def discarding(self, key: Key) -> None:
        """A dead letter is to be forgotten."""
        self.letters.remove(key, self._now())

    def discarded(self, key: Key) -> None:
        """It is forgotten, for good."""
        self.letters.bury(key)

    def listed(self, letters: Sequence[LetterTruth], *, is_idle: bool) -> None:
        """Dead letters are listed; while something goes on they may be about to change."""
        for listed in letters:
            key = listed.group, listed.name, listed.number
            known = self.known[listed.number]
            is_new = key not in self.letters.kept and key not in self.letters.gone
            if is_new and listed.error in UNSEEN and listed.group in self.groups:
                self.groups[listed.group].learn_of_held(listed.name, known)
            if is_idle:
                self.letters.learn(key, known.fact, listed)
            elif key in self.letters.kept:
                self.letters.kept[key].id = listed.id
        if is_idle:
            self.letters.check_all_listed(letters)

    # Looking at it

    def check_idle(
        self,
        letters: Sequence[LetterTruth],
        counted: Mapping[str, Counted],
        published: int,
        scheduled: int,
        times: tuple[float, float],
    ) -> None:
        """Check that nothing is left, when the bus says so and nobody publishes."""
        self._take_what_came(times[0])
        self.schedule.check_count(scheduled, *times)
        for group in self.groups.values():
            for known in self.known.values():
                missing = group.missing(known) if known.is_accepted and group.is_active else []
                if missing:
                    self.breach(
                        f"nothing is left, and {group.terms.name}/{missing[0].terms.name} was "
                        f"never done with {known.fact.number}"
                    )
        self.listed(letters, is_idle=True)
        if not self._is_uncertain and published != len(self._new):
            self.breach(f"{len(self._new)} events were published, and counted are {published}")
        for name, found in counted.items():
            self._check_counters(self.groups[name], found)

    def _check_counters(self, group: GroupModel, found: Counted) -> None:
        handled = found.handled
        if not (group.has_changed or self._is_uncertain):
            handled = group.replayed + sum(
                self._has_plan(group, known) for known in self.known.values() if known.is_accepted
            )
        dead_lettered = group.dead_lettered
        if group.has_unseen:
            dead_lettered = max(dead_lettered, found.dead_lettered)
        # It counts to ask again whether an event is wanted in which the process has died, and to
        # begin a retry just when its subscription goes.
        is_vague = group.has_blamed or group.has_changed
        wanted = Counted(
            published=handled,
            handled=handled,
            failed_attempts=group.failed_attempts,
            retries=max(group.retries, found.retries) if is_vague else group.retries,
            dead_lettered=dead_lettered,
            queued=0,
            in_flight=0,
            waiting_for_retry=0,
            lag=0,
        )
        if found != wanted:
            self.breach(f"the statistics of {group.terms.name} are {found}, not {wanted}")

    def _has_plan(self, group: GroupModel, known: Known) -> bool:
        """Whether there is a delivery for an event, of whose number no handler need approve."""
        rows = () if group.truth is None else group.truth.rows
        done = {name for row in rows if row.number == known.fact.number for name in row.done}
        return not group.is_settled(known) and any(
            known.fact.kind in member.terms.kinds and name not in done
            for name, member in group.members.items()
        )

    def check_no_stall(self, now: float) -> None:
        """Check, after time has passed, that no free worker has left something lying about."""
        if self._changed_at >= now or any(x.is_replaying for x in self.letters.kept.values()):
            return
        for group in self.groups.values():
            is_free = group.running < group.terms.workers
            # With a store, what waits for a retry takes room, and nothing is read without any.
            waiting = sum(len(delivery.due) for delivery in group.deliveries.values())
            is_full = self.has_store and waiting > group.terms.buffer / 2
            # Those in which the process has died are handled one at a time, of all groups.
            is_barred = group.has_blamed and any(x.runs_blamed for x in self.groups.values())
            is_idle = group.is_pausing or not group.is_active or is_barred
            if is_idle or not is_free or group.has_changed or is_full:
                continue
            for known in self.known.values():
                if known.is_accepted and self._is_ready(group, known, now):
                    self.breach(
                        f"{known.fact.number} is ready, {group.terms.name} has a free worker, and "
                        "time passes"
                    )

    def _is_ready(self, group: GroupModel, known: Known, now: float) -> bool:
        """Whether a handler could be called with an event, and could have been before now."""
        fact = known.fact
        for number, delivery in group.deliveries.items():
            other = self.known[number].fact
            is_same_lane = group.terms.is_ordered and fact.key is not None and other.key == fact.key
            is_busy = delivery.running is not None or any(
                due >= now for due in delivery.due.values()
            )
            if is_busy and (number == fact.number or is_same_lane):
                return False
        # If an earlier one of its aggregate is in its way, then that one is ready.
        return group.owes_a_call(known)

    # Lives and stores

    def ending(self, at: float) -> None:
        """From that moment on handlers may be cancelled."""
        self._ending_at = at

    def commit_began(self) -> None:
        """What has been finished by now will be recorded."""
        self.letters.commit_began()
        self._finishing = {
            name: {n for n in group.deliveries if self._is_finished(group, n)}
            for name, group in self.groups.items()
        }

    def _is_finished(self, group: GroupModel, number: int) -> bool:
        delivery = group.deliveries[number]
        # One that waits for somebody who has gone meanwhile is finished when its time has come.
        is_busy = delivery.running is not None or delivery.is_open_ended or delivery.due
        known = self.known[number]
        is_open = is_busy or group.owes_something(known) or group.may_ask(known)
        return bool(delivery.called) and not is_open

    def commit_ended(self) -> None:
        """It is recorded."""
        self.letters.commit_ended()
        for name, finished in self._finishing.items():
            self._recorded.setdefault(name, set()).update(finished)
        self._finishing = {}

    def check_store(
        self, truth: StoreTruth, times: tuple[float, float], *, is_crash: bool, is_drained: bool
    ) -> None:
        """Check what a store has when its bus is gone: `times` is when it began to go, and now."""
        self.schedule.check_log(truth.log, *times)
        self._was_crash = is_crash
        if truth.positions != tuple(range(1, len(truth.log) + 1)):
            self.breach(f"the positions are {truth.positions}")
        for position, number in enumerate(truth.log, 1):
            known = self.known.get(number)
            if known is None or (known.is_refused and not known.is_uncertain):
                self.breach(f"{number} is stored, and was not accepted")
            if known.position not in (None, position):
                self.breach(f"{number} was at {known.position}, and is at {position}")
        lost = {n for n, known in self.known.items() if known.is_accepted} - set(truth.log)
        if lost:
            self.breach(f"{sorted(lost)} were accepted, and are not stored")
        for group in self.groups.values():
            self._check_group(group, truth, is_crash=is_crash, is_drained=is_drained)
        self._check_letters(truth.letters, is_crash=is_crash)

    def _check_group(
        self, group: GroupModel, truth: StoreTruth, *, is_crash: bool, is_drained: bool
    ) -> None:
        name, found = group.terms.name, truth.groups.get(group.terms.name)
        if group.is_resetting:
            return  # that was cut off: it may have happened
        if found is None:
            if group.is_active and not is_crash:
                self.breach(f"{name} is not stored")
            return
        settled = {truth.log[position - 1] for position in found.settled}
        passed_over = set(truth.log[: group.reset_to])
        for number in settled - group.settled - passed_over:
            missing = group.missing(self.known[number])
            if missing and group.is_active:
                self.breach(
                    f"{number} is recorded as finished in {name}, and {missing[0].terms.name} is "
                    "not done with it"
                )
        stored = set(truth.log)
        must = self._recorded.get(name, set()) | (group.settled & stored)
        if not is_crash and group.is_active:
            must |= {n for n in group.deliveries if self._is_finished(group, n)}
        if must - settled:
            self.breach(f"{sorted(must - settled)} are finished in {name}, and not recorded")
        if is_drained and group.is_active and (found.offset != len(stored) or found.rows):
            self.breach(f"{name} was drained, and is stored as {found}")
        self._check_rows(group, truth, is_crash=is_crash)

    def _check_rows(self, group: GroupModel, truth: StoreTruth, *, is_crash: bool) -> None:
        rows = {row.number: row for row in truth.groups[group.terms.name].rows}
        for number, row in rows.items():
            delivery = group.deliveries.get(number, Delivery())
            extra = 1 if delivery.is_open_ended else 0
            # An attempt that has begun is recorded before its handler is called.
            if row.attempts > delivery.attempts.get(row.name, 0) + (extra or row.is_begun):
                self.breach(f"{row} is stored in {group.terms.name}, and fewer attempts were seen")
            owed = [
                name
                for name in sorted(set(row.done) - delivery.done)
                if (member := group.members.get(name)) is not None
                and group.owes(member, self.known[number]) != "no"
                and not (extra or group.assume_held(member, self.known[number]))
            ]
            if owed:
                self.breach(f"{row} is stored in {group.terms.name}, and {owed} are not done")
        if not is_crash:
            for number, delivery in group.deliveries.items():
                for name in () if delivery.is_open_ended else [*delivery.due]:
                    member, known = group.members.get(name), self.known[number]
                    if member is None or not member.terms.wants(known.fact):
                        continue
                    if group.assume_held(member, known):
                        continue
                    row = rows.get(number)
                    is_there = row is not None and (row.name, row.attempts) == (
                        name,
                        delivery.attempts[name],
                    )
                    if not is_there:
                        self.breach(f"{name} waits for a retry of {number}, and {row} is stored")

    def _check_letters(self, letters: Sequence[LetterTruth], *, is_crash: bool) -> None:
        stored = {(x.group, x.name, x.number): x for x in letters}
        if len({letter.id for letter in letters}) != len(letters):
            self.breach(f"dead letters share an id: {letters}")
        for key, letter in stored.items():
            if key not in self.letters.kept and letter.error in UNSEEN and key[0] in self.groups:
                self.groups[key[0]].learn_of_held(key[1], self.known[key[2]])
        for key in stored.keys() | self.letters.kept.keys() | self.letters.gone.keys():
            letter = stored.get(key)
            found = None if letter is None else (letter.attempts, letter.error)
            versions = self.letters.may_be_stored(key)
            is_open = key in self.letters.open_ended or (
                key[0] in self.groups and self.groups[key[0]].is_resetting
            )
            # What is held back is known late: a crash may have come before it was recorded.
            is_unseen = versions[-1] is not None and versions[-1][1] in UNSEEN
            is_late = is_crash and key in self.letters.kept and is_unseen
            is_right = found in (versions if is_crash else versions[-1:])
            if not (is_right or is_late or is_open):
                self.breach(f"dead letter {key} is stored as {found}, and it was {versions}")

    def life_began(self, truth: StoreTruth | None) -> None:
        """A bus is about to start, with what a store has or with nothing."""
        self.groups.clear()
        self._new.clear()
        self._orders.clear()
        self._recorded.clear()
        self._finishing = {}
        self._ending_at, self._is_uncertain = None, False
        if truth is None:
            self.known.clear()
            self.schedule.forget()
            self.letters.restore([])
            return
        for position, number in enumerate(truth.log, 1):
            known = self.known[number]
            known.position, known.is_uncertain = position, False
            if known.returned is None:
                known.returned = self._now()
        for known in self.known.values():
            known.is_refused = known.position is None and not self.schedule.is_owed(known)
        self.letters.restore(
            ((x.group, x.name, x.number), self.known[x.number].fact, x) for x in truth.letters
        )
