"""Which statements a program may make inside a commit.

The server takes one statement at a time there, so that its first word tells what it does. What
writes to triobus's own tables is refused by the server, by a trigger.
"""

import re

_RETURN = "return to have it committed, or raise to have it rolled back"
_ENDS = f"the store commits what was done, with the rest of its commit: {_RETURN}"
_SESSION = (
    "it would hold for the store and for others that share the commit: leave it out, and name "
    "tables with their schema"
)
_WORDS = {
    "BEGIN": _ENDS,
    "START": _ENDS,
    "COMMIT": _ENDS,
    "END": _ENDS,
    "ABORT": _ENDS,
    "PREPARE TRANSACTION": _ENDS,
    "SET": _SESSION,
    "RESET": _SESSION,
    "DISCARD": _SESSION,
    "DEALLOCATE": _SESSION,
    "LISTEN": _SESSION,
    "UNLISTEN": _SESSION,
    "COPY": "it needs more than one step: use transaction.executemany()",
}
"""First words of what is refused, and why."""
_BLANK = re.compile(r"\s+|--[^\n]*(?:\n|$)")
_NEXT = re.compile(r"[A-Za-z]+|\"triobus|[^\s]")


def reason_against(statement: str) -> str | None:
    """Return why a program's statement is not to be made; None if it may."""
    first, second, *more = (*_words(statement, 5), "", "")
    if first == "SET" and second == "CONSTRAINTS":
        return None
    if first == "ROLLBACK" and "TO" not in (second, *more):
        return _ENDS
    names = (second, *more)
    if first in ("SAVEPOINT", "RELEASE", "ROLLBACK") and any(
        name.startswith(("TRIOBUS", '"TRIOBUS')) for name in names
    ):
        return "savepoints of that name are triobus's own: give it another name"
    return _WORDS.get(first) or _WORDS.get(f"{first} {second}")


def _words(statement: str, count: int) -> list[str]:
    """Return the first words of a statement in upper case, without comments."""
    words: list[str] = []
    at = 0
    while len(words) < count and (at := _behind_blank(statement, at)) < len(statement):
        found = _NEXT.match(statement, at)
        assert found is not None  # there is no blank at this place
        words.append(found.group().upper())
        at = found.end()
    return words


def _behind_blank(statement: str, at: int) -> int:
    while True:
        if statement.startswith("/*", at):
            at = _behind_comment(statement, at)
        elif (found := _BLANK.match(statement, at)) is not None:
            at = found.end()
        else:
            return at


def _behind_comment(statement: str, at: int) -> int:
    """Return where a comment ends, in which others may be nested."""
    depth = 0
    for found in re.compile(r"/\*|\*/").finditer(statement, at):
        depth += 1 if found.group() == "/*" else -1
        if not depth:
            return found.end()
    return len(statement)
