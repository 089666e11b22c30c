"""Programs for a bus: what Hypothesis draws, as values that say what is to be done."""

from typing import Literal

import attrs
from hypothesis import strategies as st

from tests.proofs.model.facts import GroupTerms, Terms

KINDS = ("plain", "special", "other")
"""Types of events; "special" is a subclass of "plain"."""
TIMEOUT = 0.731
"""Of those subscriptions that have one; no sum of the other times is the same."""
FOR_GOOD = 99

Error = Literal["ValueError", "KeyError", "ExceptionGroup", "hangs"]


@attrs.frozen
class Draft:
    """An event to be published, and what its handlers make of it."""

    kind: str
    key: str | None
    seconds: float
    """How long a handler takes."""
    steps: int
    """How many checkpoints it makes besides."""
    failures: int
    """How many calls of a handler fail, whatever their reason."""
    victims: int
    """Whose calls fail: bits for the subscriptions by their numbers."""
    error: Error
    children: int
    """How many events a handler publishes."""


@attrs.frozen
class Publish:
    """Publish one event, or several together; in a task of its own, or before anything else."""

    drafts: tuple[Draft, ...]
    how: Literal["publish", "many", "nowait", "wait", "append"]
    is_aside: bool
    cancelled_after: int | None = None
    """After how many checkpoints the publisher is cancelled, if it is."""


@attrs.frozen
class PublishLater:
    """Publish an event that is due after some time."""

    draft: Draft
    delay: float
    is_aside: bool
    cancelled_after: int | None = None


@attrs.frozen
class Withdraw:
    """Take back an event that was published for later."""

    choice: int


@attrs.frozen
class Pause:
    """Pause a group for some time, and perhaps send it to another place in the log meanwhile."""

    choice: int
    seconds: float
    place: int | None = None
    """Which position it is reset to, if it is."""


@attrs.frozen
class PublishAgain:
    """Publish an event again that was published before."""

    choice: int


@attrs.frozen
class PublishOther:
    """Publish other content under the id of an event that was published before."""

    choice: int


@attrs.frozen
class Look:
    """Read the store beside its bus: all of it, one event, its statistics."""

    choice: int


@attrs.frozen
class Listen:
    """Listen for some time, with little room, and take long over each event."""

    seconds: float
    pace: float


@attrs.frozen
class Sleep:
    """Let time pass."""

    seconds: float


@attrs.frozen
class Step:
    """Let the others go on for some checkpoints."""

    count: int


@attrs.frozen
class Settle:
    """Wait until nothing is left to do, and look at everything."""


@attrs.frozen
class Subscribe:
    """Add a subscription to a group while the bus runs."""

    choice: int
    terms: Terms


@attrs.frozen
class Unsubscribe:
    """Take one away."""

    choice: int


@attrs.frozen
class MakeGroup:
    """Make a group while the bus runs."""

    terms: GroupTerms
    subscriptions: tuple[Terms, ...]


@attrs.frozen
class Replay:
    """Replay dead letters: some of them, or all of a group."""

    choice: int
    count: int
    is_aside: bool


@attrs.frozen
class Discard:
    """Discard one."""

    choice: int


@attrs.frozen
class End:
    """End a life of the program; another one begins."""

    how: Literal["drain", "stop", "stop in time", "cancel", "crash"]
    seconds: float = 0.0
    """How long the bus may drain, for one that stops in time."""


Operation = (
    Publish
    | PublishLater
    | Withdraw
    | Pause
    | PublishAgain
    | PublishOther
    | Look
    | Listen
    | Sleep
    | Step
    | Settle
    | Subscribe
    | Unsubscribe
    | MakeGroup
    | Replay
    | Discard
    | End
)


@attrs.frozen
class Program:
    """What is done with a bus, over all lives."""

    workers: int
    buffer: int
    subscriptions: tuple[Terms, ...]
    """Those of the group "default"; their names and groups are given later."""
    groups: tuple[MakeGroup, ...]
    operations: tuple[Operation, ...]
    seed: int
    """What decides the order in which tasks run, and how long the store takes."""
    is_run: bool
    """Whether the bus is started by `run` in a nursery, or as a block."""


def _terms() -> st.SearchStrategy[Terms]:
    kinds = st.sampled_from([{"plain", "special"}, {"special"}, {"other"}, set(KINDS)])
    return st.builds(
        Terms,
        group=st.just(""),
        name=st.just(""),
        kinds=kinds.map(frozenset),
        parity=st.sampled_from([None, None, None, 0, 1]),
        priority=st.integers(0, 2),
        attempts=st.integers(1, 3),
        delay=st.sampled_from([0.0, 0.5, 3.0]),
        factor=st.sampled_from([1.0, 2.0]),
        timeout=st.sampled_from([None, None, TIMEOUT]),
        hold=st.sampled_from([False, False, True]),
    )


def _drafts() -> st.SearchStrategy[Draft]:
    return st.builds(
        Draft,
        kind=st.sampled_from(KINDS),
        key=st.sampled_from(["x", "x", "y", "z", None]),
        seconds=st.sampled_from([0.0, 0.0, 0.0, 0.25, 1.5]),
        steps=st.integers(0, 2),
        failures=st.sampled_from([0, 0, 1, 2, 4, FOR_GOOD]),
        victims=st.sampled_from([1, 2, 3, 255]),
        error=st.sampled_from(["ValueError", "ValueError", "KeyError", "ExceptionGroup", "hangs"]),
        children=st.sampled_from([0, 0, 0, 1, 2]),
    )


def _publishes() -> st.SearchStrategy[Publish]:
    one = st.tuples(_drafts())
    return st.one_of(
        st.builds(Publish, one, st.just("publish"), st.booleans()),
        st.builds(
            Publish,
            st.lists(_drafts(), min_size=1, max_size=4).map(tuple),
            st.just("many"),
            st.booleans(),
        ),
        st.builds(Publish, one, st.just("nowait"), st.just(False)),
        st.builds(Publish, one, st.just("wait"), st.just(True)),
        st.builds(
            Publish,
            one,
            st.sampled_from(["publish", "many", "wait"]),
            st.just(True),
            st.integers(0, 6),
        ),
    )


def _groups() -> st.SearchStrategy[MakeGroup]:
    return st.builds(
        MakeGroup,
        st.builds(
            GroupTerms,
            name=st.just(""),
            workers=st.sampled_from([1, 2, 4]),
            is_ordered=st.sampled_from([True, True, False]),
            is_from_beginning=st.booleans(),
            buffer=st.sampled_from([1, 3, 1000]),
        ),
        st.lists(_terms(), min_size=1, max_size=2).map(tuple),
    )


def _operations() -> st.SearchStrategy[Operation]:
    choices = st.integers(0, 7)
    return st.one_of(
        _publishes(),
        _publishes(),
        _publishes(),
        st.builds(PublishAgain, choices),
        st.builds(Sleep, st.sampled_from([0.1, 0.1, 1.0, 5.0])),
        st.builds(Step, st.integers(1, 12)),
        st.builds(Settle),
        st.builds(Subscribe, choices, _terms()),
        st.builds(Unsubscribe, choices),
        _groups(),
        st.builds(Replay, choices, st.integers(0, 3), st.booleans()),
        st.builds(Discard, choices),
    )


def _operations_beside() -> st.SearchStrategy[Operation]:
    """Draw what is done beside publishing and handling, as often as the rest."""
    choices = st.integers(0, 7)
    delays = st.sampled_from([0.0, 0.1, 1.0, 4.0, 30.0])
    some = st.lists(_drafts(), min_size=1, max_size=3).map(tuple)
    return st.one_of(
        _operations(),
        st.builds(Publish, some, st.just("append"), st.booleans()),
        st.builds(Publish, some, st.just("append"), st.just(True), st.integers(0, 6)),
        st.builds(PublishOther, choices),
        st.builds(PublishLater, _drafts(), delays, st.booleans()),
        st.builds(PublishLater, _drafts(), delays, st.just(True), st.integers(0, 6)),
        st.builds(Withdraw, choices),
        st.builds(Pause, choices, st.sampled_from([0.0, 0.4, 2.0])),
        st.builds(Pause, choices, st.sampled_from([0.0, 0.4]), st.integers(0, 20)),
        st.builds(PublishAgain, choices),
        st.builds(Look, choices),
        st.builds(Listen, st.sampled_from([0.3, 4.0]), st.sampled_from([0.0, 0.7])),
        st.builds(Unsubscribe, choices),
        st.builds(Replay, choices, st.integers(0, 3), st.just(True)),
        st.builds(Discard, choices),
    )


def _lives(operations: st.SearchStrategy[Operation]) -> st.SearchStrategy[tuple[Operation, ...]]:
    ends = st.builds(
        End,
        st.sampled_from(["drain", "stop", "stop in time", "cancel", "crash", "crash", "crash"]),
        st.sampled_from([0.0, 0.6, 2.0]),
    )
    life = st.tuples(st.lists(operations, min_size=1, max_size=12), ends)
    return st.lists(life.map(lambda life: (*life[0], life[1])), min_size=1, max_size=4).map(
        lambda lives: tuple(operation for life in lives for operation in life)
    )


def programs(*, is_wide: bool = False) -> st.SearchStrategy[Program]:
    """Draw programs; wide ones use the store beside the bus, listen, and publish other content."""
    return st.builds(
        Program,
        workers=st.sampled_from([1, 2, 4]),
        buffer=st.sampled_from([0, 1, 3, 1000]),
        subscriptions=st.lists(_terms(), min_size=1, max_size=3).map(tuple),
        groups=st.lists(_groups(), max_size=1).map(tuple),
        operations=_lives(_operations_beside() if is_wide else _operations()),
        seed=st.integers(0, 2**16),
        is_run=st.booleans(),
    )
