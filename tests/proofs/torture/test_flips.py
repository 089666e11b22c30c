"""A short share of `python -m tests.proofs flips`."""

import pytest

from tests.proofs.torture import flips
from tests.proofs.torture.violation import Violation
from triobus._cli._verify import examined


def test_250_flips_and_what_goes_with_them_leave_nothing_unnoticed():
    said = []
    flips.run(250, 2026, said.append)
    assert len(said) == 4
    assert all("0 unnoticed" in line for line in said)
    assert all(int(line.split(" times: ")[1].split(" ")[0]) > 0 for line in said)


def test_a_change_that_is_not_noticed_is_a_violation_with_the_seed(monkeypatch):
    async def blind(store):
        found = await examined(store)
        return type(found)((), (), found.last, found.statistics)

    monkeypatch.setattr(flips, "examined", blind)
    said = r"^2026 a bit of a store at rest \d+: (a change|it was said)"
    with pytest.raises(Violation, match=said):
        flips.run(300, 2026, print)
