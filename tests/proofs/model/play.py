"""One example: a program, a store, a run of Trio, and a verdict."""

import tempfile
from pathlib import Path

import attrs
import trio
from trio.testing import MockClock

from tests.proofs.model.player import Player
from tests.proofs.model.programs import Program
from tests.proofs.model.promises import Promises
from tests.proofs.model.stores import opened
from triobus._environment import replace
from triobus.testing._scheduler import scheduled_by

KINDS = ("none", "memory", "sqlite")
"""What a bus may have for a store."""
_PATIENCE = 1e6
"""Virtual seconds after which nothing is left that could wake a program."""


@attrs.define
class Tally:
    """What was seen, over many examples."""

    examples: int = 0
    operations: int = 0
    events: int = 0
    deliveries: int = 0
    crashes: int = 0

    def add(self, program: Program, player: Player) -> None:
        """Count an example."""
        self.examples += 1
        self.operations += len(program.operations)
        self.events += player.promises.accepted
        self.deliveries += player.promises.deliveries
        self.crashes += player.crashes


def play(program: Program, kind: str, tally: Tally) -> None:
    """Play a program on a bus with a kind of store; raise `Broken` if it breaks a promise."""
    promises = Promises(has_store=kind != "none")
    with tempfile.TemporaryDirectory(prefix="triobus-") as directory:
        store = opened(kind, Path(directory), program.seed)
        player = Player(program, promises, store)

        async def main() -> None:
            if store is not None:
                replace(instead_of_thread=store.call)
            with trio.move_on_after(_PATIENCE) as patience:
                await player.play()
            if patience.cancelled_caught:
                promises.breach("every task waits, and nothing is left that could wake one")

        try:
            with scheduled_by(program.seed):
                trio.run(main, clock=MockClock(autojump_threshold=0))
        except BaseException:
            if promises.first is None:
                raise
        if promises.first is not None:
            raise promises.first from None
    tally.add(program, player)
