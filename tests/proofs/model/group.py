"""The model of one group in one life of a bus: what it owes to whom, and in which order."""

from typing import Literal

import attrs

from tests.proofs.model.facts import Breach, Fact, GroupTerms, GroupTruth, Known, Terms
from tests.proofs.model.letters import DIED, HELD, Letter, Letters

Owed = Literal["owed", "may", "no"]


@attrs.define(eq=False)
class Member:
    """A subscription of the group."""

    terms: Terms
    rank: tuple[int, int]
    """Lower ranks are called first."""
    since: int
    """When it was made."""
    reach: Literal["all", "may", "new"]
    """Whether it gets what was published before and is not finished, may get it, or does not."""


@attrs.define(eq=False)
class Delivery:
    """One event in the group, in one life."""

    done: set[str] = attrs.field(factory=set)
    """Subscriptions that have handled it, or for which it is a dead letter."""
    attempts: dict[str, int] = attrs.field(factory=dict)
    due: dict[str, float] = attrs.field(factory=dict)
    """When the next attempt of a subscription is due, if one waits for that."""
    called: set[str] = attrs.field(factory=set)
    """Subscriptions that were called in this life."""
    blamed: str | None = None
    """In whose attempt the process may have died; after the last one it is a dead letter."""
    first: str | None = None
    """Who had failed with it in the life before, and goes on before all others."""
    running: str | None = None
    is_closed: bool = False
    """Whether its aggregate has gone on."""
    is_open_ended: bool = False
    """Whether an attempt has ended while the bus did, so that it may count or not."""


@attrs.define(eq=False)
class GroupModel:
    """A group."""

    terms: GroupTerms
    _has_store: bool
    _known: dict[int, Known]
    _letters: Letters
    _breach: Breach
    members: dict[str, Member] = attrs.field(factory=dict)
    former: dict[str, Member] = attrs.field(factory=dict)
    """Those that have gone in this life."""
    deliveries: dict[int, Delivery] = attrs.field(factory=dict)
    settled: set[int] = attrs.field(factory=set)
    """Numbers of the events that were finished before this life, or before the group began, unless
    it was reset."""
    truth: GroupTruth | None = None
    """What the store had of it when the life began."""
    is_active: bool = False
    running: int = 0
    failed_attempts: int = 0
    retries: int = 0
    dead_lettered: int = 0
    replayed: int = 0
    has_changed: bool = False
    """Whether somebody has come or gone in this life."""
    has_unseen: bool = False
    """Whether letters of what was held back may have come and gone without being seen."""
    is_pausing: bool = False
    """Whether it is paused, or about to be."""
    is_paused: bool = False
    is_resetting: bool = False
    reset_at: int = 0
    """When it was reset last; times are counted in things that happened."""
    reset_to: int = 0
    """The position that it was reset to."""

    # Who is there

    def subscribe(self, terms: Terms, now: int, *, is_start: bool) -> None:
        """A subscription was made."""
        reach: Literal["all", "may", "new"] = "may" if self._has_store else "new"
        if not self.is_active:
            self.is_active = True
            if self._has_store and (self.truth is not None or self.terms.is_from_beginning):
                reach = "all"
            else:
                reach = "new"
                self.settled.update(n for n, known in self._known.items() if known.is_accepted)
        if is_start:
            reach = "all"
        self.has_changed |= not is_start
        rank = -terms.priority, now
        self.members[terms.name] = Member(terms, rank, now, reach)

    def unsubscribe(self, name: str) -> None:
        """A subscription has gone."""
        self.former[name] = self.members.pop(name)
        self.has_changed = True

    def is_settled(self, known: Known) -> bool:
        """Whether an event was finished before this life, or the group began or was sent past it.

        Where an event is in the log is known when its publisher has been told.
        """
        is_passed = known.position is not None and known.position <= self.reset_to
        return is_passed or known.fact.number in self.settled

    @property
    def _blamed(self) -> set[int]:
        """The events in whose handlers the process has died before this life."""
        rows = () if self.truth is None else self.truth.rows
        return {row.number for row in rows if row.is_begun}

    @property
    def has_blamed(self) -> bool:
        """Whether there are such events."""
        return bool(self._blamed)

    @property
    def runs_blamed(self) -> bool:
        """Whether such an event is being handled."""
        blamed = self._blamed
        return any(x.running is not None and n in blamed for n, x in self.deliveries.items())

    def owes(self, member: Member, known: Known) -> Owed:
        """Whether an event is to go to a subscription."""
        if not member.terms.wants(known.fact) or self.is_settled(known):
            return "no"
        if member.reach == "all" or known.begun > member.since:
            return "owed"
        is_overlapping = known.returned is None or known.returned > member.since
        return "may" if is_overlapping or member.reach == "may" else "no"

    def is_done(self, name: str, number: int) -> bool:
        """Whether a subscription is done with an event."""
        delivery = self.deliveries.get(number)
        return delivery is not None and name in delivery.done

    def missing(self, known: Known) -> list[Member]:
        """Return to whom an event is owed still; what may be held back is taken to be.

        Nothing is known for certain of one that failed while the bus ended.
        """
        delivery = self.deliveries.get(known.fact.number)
        if delivery is not None and delivery.is_open_ended:
            return []
        return [
            member
            for member in self.members.values()
            if self.owes(member, known) == "owed"
            and not self.is_done(member.terms.name, known.fact.number)
            and not self.assume_held(member, known)
        ]

    def owes_something(self, known: Known) -> bool:
        """Whether an event may have to go to somebody who is not done with it."""
        return any(
            self.owes(member, known) != "no" and not self.is_done(name, known.fact.number)
            for name, member in self.members.items()
        )

    def may_ask(self, known: Known) -> bool:
        """Whether somebody has said no to an event, or has still to be asked: nobody sees that."""
        terms = [member.terms for member in self.members.values()]
        return any(known.fact.kind in each.kinds and not each.wants(known.fact) for each in terms)

    def owes_a_call(self, known: Known) -> bool:
        """Whether there is a handler that must be called with it, now or later."""
        return any(
            self.owes(member, known) == "owed"
            and not self.is_done(name, known.fact.number)
            and not self.can_be_held(member, known)
            and not self._can_have_died(member, self.deliveries.get(known.fact.number, Delivery()))
            for name, member in self.members.items()
        )

    def can_be_held(self, member: Member, known: Known) -> bool:
        """Whether an event can have been held back from a subscription, or is about to be."""
        fact, name = known.fact, member.terms.name
        delivery = self.deliveries.get(fact.number)
        return (
            member.terms.hold
            and fact.key is not None
            and (delivery is None or name not in delivery.attempts or not self.terms.is_ordered)
            and (self.terms.name, name, fact.number) not in self._letters.kept
            and self._letters.was_held(self.terms.name, name, fact.key, known.begun)
        )

    def learn_of_held(self, name: str, known: Known) -> None:
        """An event is a dead letter that was held back; take it for one if that can be."""
        member = self.members.get(name) or self.former.get(name)
        if member is not None:
            self.assume_held(member, known)

    def assume_held(self, member: Member, known: Known) -> bool:
        """Take an event for held back, if it can have been; return whether it can."""
        fact, name = known.fact, member.terms.name
        delivery = self.deliveries.setdefault(fact.number, Delivery())
        has_died = self._can_have_died(member, delivery)
        if not (has_died or self.can_be_held(member, known)):
            return False
        version = (delivery.attempts[name], DIED) if has_died else HELD
        delivery.done.add(name)
        delivery.due.pop(name, None)
        self.dead_lettered += 1
        self.failed_attempts += has_died
        self.retries += has_died
        self._letters.add((self.terms.name, name, fact.number), fact, *version)
        return True

    def _can_have_died(self, member: Member, delivery: Delivery) -> bool:
        """Whether it is a dead letter, for the process has died in the last of its attempts."""
        name = member.terms.name
        is_last = delivery.attempts.get(name, 0) >= member.terms.attempts
        return delivery.blamed == name and is_last and name not in delivery.called | delivery.done

    def begin_anew(self, offset: int, now: int) -> None:
        """It was reset to a position."""
        self.is_resetting, self.reset_at, self.reset_to = False, now, offset
        self.has_changed = True  # what it counts is both of before and of after
        self.has_unseen |= any(member.terms.hold for member in self.members.values())
        self.settled.clear()
        self.deliveries.clear()
        for member in self.members.values():
            member.reach = "all"
        for key in [key for key in self._letters.kept if key[0] == self.terms.name]:
            self._letters.remove(key, now)
            self._letters.bury(key)
        self._letters.release(self.terms.name)

    # Attempts

    def attempt_began(self, name: str, known: Known, attempt: int, now: float) -> None:
        """A handler was called."""
        fact = known.fact
        what = f"{self.terms.name}/{name} was called with {fact.number} of {fact.key!r}"
        member = self.members.get(name)
        if member is None:
            self._breach(f"{what}, and is not subscribed")
        if not member.terms.wants(fact):
            self._breach(f"{what}, which it does not want")
        if self.is_paused:
            self._breach(f"{what}, and its group is paused")
        if self.running >= self.terms.workers:
            self._breach(f"{what} by more workers than there are")
        self.running += 1
        self.retries += attempt > 1
        key = self.terms.name, name, fact.number
        letter = self._letters.kept.get(key)
        if letter is None and key in self._letters.open_ended:
            return  # it failed while the bus ended, which may have come to replay it
        if letter is None:
            self._delivery_goes_on(member, known, attempt, now, what)
        else:
            self._replay_goes_on(member, letter, attempt, now, what)

    def _delivery_goes_on(
        self, member: Member, known: Known, attempt: int, now: float, what: str
    ) -> None:
        name, fact = member.terms.name, known.fact
        if self.is_settled(known):
            self._breach(f"{what}, which was finished before")
        if self.owes(member, known) == "no":
            self._breach(f"{what}, which was published before it subscribed")
        delivery = self.deliveries.setdefault(fact.number, Delivery())
        if name in delivery.done:
            self._breach(f"{what} again, which it was done with")
        if delivery.running is not None:
            self._breach(f"{what}, which {delivery.running} has at the same time")
        expected = delivery.attempts.get(name, 0) + 1
        if attempt != expected:
            self._breach(f"{what} for attempt {attempt}, and it is attempt {expected}")
        if now < delivery.due.pop(name, 0.0) - 1e-9:
            self._breach(f"{what} before its retry was due")
        if self.terms.is_ordered and fact.key is not None:
            self._check_order(known, what)
            self._check_lane(fact, what)
        if delivery.is_closed:
            self._breach(f"{what} after its aggregate had gone on")
        self._check_ranks(member, known, delivery, what)
        if member.terms.hold and fact.key is not None:
            lane = self._letters.lane(self.terms.name, name, fact.key)
            if lane:
                self._breach(f"{what}, although {lane[0][0]} holds it back")
        delivery.attempts[name] = attempt
        delivery.called.add(name)
        delivery.running = name

    def _replay_goes_on(
        self, member: Member, letter: Letter, attempt: int, now: float, what: str
    ) -> None:
        if not letter.is_replaying and letter.version == HELD:
            # It was held back behind one that is being replayed, and goes with it.
            letter.is_replaying = self._letters.is_replaying(
                self.terms.name, member.terms.name, letter
            )
        if not letter.is_replaying:
            self._breach(f"{what}, which is a dead letter")
        if attempt != letter.tries + 1:
            self._breach(f"{what} for attempt {attempt} of a replay, after {letter.tries}")
        if letter.due is not None and now < letter.due - 1e-9:
            self._breach(f"{what} before the retry of its replay was due")
        if letter.fact.key is not None:
            self._check_lane(letter.fact, what, is_replay=True)
            if member.terms.hold and letter.id is not None:
                lane = self._letters.lane(self.terms.name, member.terms.name, letter.fact.key)
                earlier = [key for key, other in lane if (other.id or letter.id) < letter.id]
                if earlier:
                    self._breach(f"{what} in a replay, although {earlier[0]} is before it")
        letter.tries, letter.is_running, letter.due = attempt, True, None

    def _check_order(self, known: Known, what: str) -> None:
        """Check that nothing which was published before it in its aggregate is left."""
        for other in self._known.values():
            is_earlier = other.fact.key == known.fact.key and other.is_before(known)
            if is_earlier and (other.is_accepted or not other.is_refused):
                missing = self.missing(other)
                if missing:
                    self._breach(
                        f"{what}, and {missing[0].terms.name} is not done with "
                        f"{other.fact.number}, which is before it"
                    )

    def _check_lane(self, fact: Fact, what: str, *, is_replay: bool = False) -> None:
        """Check that nothing else of the aggregate is going on."""
        for number, other in self.deliveries.items():
            if number == fact.number or self._known[number].fact.key != fact.key:
                continue
            if not self.terms.is_ordered and is_replay:
                continue
            due = [
                name
                for name in [*other.due]
                if name in self.members
                and self.members[name].terms.wants(self._known[number].fact)
                and not self.assume_held(self.members[name], self._known[number])
            ]
            if other.running is not None or due:
                self._breach(f"{what}, while {number} is being handled or waits for a retry")
            if other.called and not other.is_closed and not self.is_settled(self._known[number]):
                missing = self.missing(self._known[number])
                if missing:
                    self._breach(f"{what}, between two handlers of {number}")
                other.is_closed = True
        for key, letter in self._letters.kept.items():
            is_same = key[0] == self.terms.name and letter.fact.key == fact.key
            is_busy = letter.is_running or (letter.due is not None and key[1] in self.members)
            if is_same and is_busy and (key[2] != fact.number or not is_replay):
                self._breach(f"{what}, while {key} is being replayed")

    def _check_ranks(self, member: Member, known: Known, delivery: Delivery, what: str) -> None:
        """Check that the handlers of the delivery are called in their order."""
        for other in self.members.values():
            name = other.terms.name
            if other is member or self.owes(other, known) == "no":
                continue
            first = delivery.first
            is_after = other.rank > member.rank and first not in (name, member.terms.name)
            if is_after and name in delivery.called:
                self._breach(f"{what} after {name}, which comes after it")
            is_before = name == first or (other.rank < member.rank and first != member.terms.name)
            is_first = is_before and self.owes(other, known) == "owed"
            if delivery.is_open_ended:
                continue  # its failure may have come before the end, and count
            if is_first and name not in delivery.done and not self.assume_held(other, known):
                self._breach(f"{what} before {name} was done, which comes before it")

    def attempt_ended(
        self, name: str, known: Known, error: str | None, now: float, tick: int, *, is_ending: bool
    ) -> None:
        """A handler has returned, or failed with an error."""
        self.running -= 1
        fact = known.fact
        key = self.terms.name, name, fact.number
        letter = self._letters.kept.get(key) or self._letters.gone.get(key)
        delivery = self.deliveries.setdefault(fact.number, Delivery())
        if letter is not None and letter.is_running:
            letter.is_running = False
            self._replay_ended(key, letter, error, now, tick, is_ending=is_ending)
            return
        delivery.running = None
        if error is None:
            delivery.done.add(name)
        elif is_ending:
            delivery.is_open_ended = True
            self._letters.open_ended.add(key)
        else:
            self._delivery_failed(key, delivery, fact, error, now)

    def _delivery_failed(
        self, key: tuple[str, str, int], delivery: Delivery, fact: Fact, error: str, now: float
    ) -> None:
        name = key[1]
        self.failed_attempts += 1
        delay = self._delay(name, delivery.attempts[name], error)
        if delay is None:
            delivery.done.add(name)
            self.dead_lettered += 1
            self._letters.add(key, fact, delivery.attempts[name], error)
        else:
            delivery.due[name] = now + delay

    def _replay_ended(
        self,
        key: tuple[str, str, int],
        letter: Letter,
        error: str | None,
        now: float,
        tick: int,
        *,
        is_ending: bool,
    ) -> None:
        if error is None:
            letter.was_handled = True
            self._letters.remove(key, tick)
        elif is_ending:
            self._letters.open_ended.add(key)
        else:
            self.failed_attempts += 1
            delay = self._delay(key[1], letter.tries, error)
            if delay is None:
                self._letters.fail_again(key, letter, error)
            elif key in self._letters.kept:
                letter.due = now + delay

    def _delay(self, name: str, attempt: int, error: str) -> float | None:
        """Return the delay before the next attempt; nobody who is gone gets one."""
        member = self.members.get(name)
        return None if member is None else member.terms.delay_after(attempt, error)

    def attempt_was_cancelled(self, name: str, known: Known) -> None:
        """A handler was cancelled with its bus: it counts for nothing."""
        self.running -= 1
        delivery = self.deliveries[known.fact.number]
        delivery.is_open_ended = True
        delivery.running = None
        letter = self._letters.kept.get((self.terms.name, name, known.fact.number))
        if letter is not None:
            letter.is_running = False
