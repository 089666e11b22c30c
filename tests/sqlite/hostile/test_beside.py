"""What lies beside a store, where SQLite looks for its own files."""

import os
import random
import struct

import pytest

from tests.sqlite.hostile.forging import good, opened
from tests.sqlite.hostile.probing import carry, probe, read_all, verified

PAGE = 4096


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
@pytest.mark.parametrize("kind", ["a link", "a dangling link", "a pipe"])
def test_what_is_beside_a_store_leads_nowhere_else(path, tmp_path_factory, suffix, kind):
    path.write_bytes(good())
    outside = tmp_path_factory.mktemp("outside") / "precious"
    beside = path.with_name(path.name + suffix)
    if kind == "a pipe":
        os.mkfifo(beside)
    else:
        beside.symlink_to(outside)
    if kind == "a link":
        outside.write_bytes(b"precious")
    found = probe(path)
    assert (found.read, found.bus, found.verify) == ("InvalidStorePath", "InvalidStorePath", 2)
    assert outside.exists() == (kind == "a link")
    assert kind != "a link" or outside.read_bytes() == b"precious"


def journal(pages: int, named: bytes) -> bytes:
    """Return a journal of no changes, of a transaction that another file belongs to."""
    magic = bytes.fromhex("d9d505f920a163d7")
    head = magic + struct.pack(">IIIII", 0, 0, pages, 512, PAGE)
    end = struct.pack(">I", 2**30 // PAGE + 1) + named
    return head + bytes(512 - len(head)) + end + struct.pack(">II", len(named), sum(named)) + magic


def test_a_journal_that_would_have_a_file_removed_is_refused(path, tmp_path_factory):
    precious = tmp_path_factory.mktemp("outside") / "precious"
    beside = path.with_name(path.name + "-journal")

    def prepare():
        path.write_bytes(good())
        precious.write_bytes(b"nothing to do with it\0")
        beside.write_bytes(journal(len(good()) // PAGE, bytes(precious)))

    prepare()
    with opened(path) as connection:
        connection.execute("SELECT count(*) FROM events").fetchone()
    assert not precious.exists()  # so SQLite does it
    prepare()
    found = probe(path)
    assert (found.read, found.bus, found.verify) == ("InvalidStorePath", "InvalidStorePath", 2)
    assert precious.exists()


def test_a_journal_of_garbage_is_harmless(path):
    path.write_bytes(good())
    beside = path.with_name(path.name + "-journal")
    beside.write_bytes(random.Random(1).randbytes(5000))
    for use in (read_all, carry):
        assert use(path)[0] == "fine"
    assert verified(path)[0] == 0
