"""A command that is killed at any write has done everything or nothing, and the store is whole."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import Here
from tests.proofs.torture.shim import built


def killed(here: Here, store: str, *asked: str) -> dict[str, Any]:
    library = built()
    if library is None:
        pytest.skip("there is no LD_PRELOAD here, or no C compiler")
    lines = [json.loads(line) for line in here("export", store)[1].splitlines()]
    for line in lines:  # as of other orders, which come behind these
        line["position"] += len(lines)
        line["aggregate"] = line["data"]["order"] = "new " + line["data"]["order"]
        line["data"]["event_id"] = line["data"]["event_id"].replace("00000000-", "11111111-", 1)
    Path(store + ".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli.killing", store, *asked],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("command", ["discard", "reset", "remove", "import", "backup", "erase"])
def test_a_killed_command_has_done_everything_or_nothing(
    here: Here, store: str, command: str
) -> None:
    counts = killed(here, store, command)[command]
    assert counts["between"] == []
    assert counts["places"] == counts["before"] + counts["after"] > 5
    assert counts["before"] > 0


def test_a_change_in_two_commits_would_be_found(here: Here, store: str) -> None:
    assert killed(here, store, "remove", "planted")["remove"]["between"] != []
