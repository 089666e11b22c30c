"""What is there before two calls meet."""

import attrs

from tests.proofs.overlaps.stage import Behaviour, Kind

ALL: tuple[Kind, ...] = ("none", "memory", "file", "sqlite-memory")


@attrs.frozen
class Situation:
    """Events that were published, and how long ago."""

    name: str
    events: tuple[tuple[str | None, Behaviour], ...] = ()
    """The aggregate and the behaviour of each; their numbers are 1, 2, 3 ..."""
    seconds: float = 0.1
    """How long ago they were published."""
    kinds: tuple[Kind, ...] = ALL
    buffer_of_gone: float = 1000
    is_held: bool = False
    """Whether the program has opened the store itself and keeps it open."""


SITUATIONS = {
    situation.name: situation
    for situation in (
        Situation("empty"),
        Situation("backlog", tuple((key, "slow") for key in ("a", "b", None, "a", "b", None, "a"))),
        Situation("running", (("a", "long"), ("a", "plain"))),
        Situation("retry", (("a", "retried"), ("a", "plain"), ("b", "plain"))),
        Situation("dead letter", (("a", "dead"), ("b", "plain")), seconds=6),
        Situation("full", (("a", "long"), ("b", "long")), kinds=("none",), buffer_of_gone=1),
        Situation("held", (("a", "plain"), ("b", "slow")), kinds=ALL[1:], is_held=True),
    )
}
