"""The summary of a run, as tables or as JSON."""

import struct
from types import ModuleType
from typing import Any

import msgspec

from triobus._cli._messages import CommandError
from triobus._cli._run import Run
from triobus._groups.statistics import GroupStatistics
from triobus._text import escaped

REPORT = "triobus_report"
"""The function of the user's module that returns rows to print below the summary."""

Rows = list[dict[str, Any]]


def report_rows(module: ModuleType) -> Rows | None:
    """Call the module's `triobus_report`, if it has one; raises `CommandError`."""
    report = getattr(module, REPORT, None)
    if report is None:
        return None
    try:
        rows = msgspec.to_builtins(report())
    except Exception as error:
        # It is the user's function, which may raise anything.
        raise CommandError(
            f"{REPORT}() of {module.__name__!r} failed: {type(error).__name__}: {str(error)!r}"
        ) from error
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise CommandError(f"{REPORT}() of {module.__name__!r} did not return a list of dicts")
    return rows


def as_json(result: Run, rows: Rows | None) -> str:
    """Return the summary as a JSON object."""
    statistics = result.statistics
    summary: dict[str, Any] = {
        "read": result.read,
        "bad_lines": result.bad_lines,
        "stopped_by": result.stopped_by,
        "published": statistics.published,
        "seconds": statistics.uptime_seconds,
        "groups": {
            name: {
                "handled": group.handled,
                "succeeded": _succeeded(group),
                "failed_attempts": group.failed_attempts,
                "dead_lettered": group.dead_lettered,
                "left": group.lag,
                "per_second": _rate(group.handled, statistics.uptime_seconds),
                "p50": group.p50,
                "p99": group.p99,
            }
            for name, group in statistics.groups.items()
        },
    }
    if result.store is not None:
        summary["store"] = result.store.path
        summary["known_already"] = result.known
        summary["left_before"] = result.left_before
    if rows is not None:
        summary["report"] = rows
    text = msgspec.json.format(msgspec.json.encode(summary).decode(), indent=2)
    # msgspec leaves DEL, C1 controls and what turns the direction of writing as they are.
    return "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in text)


def _escape(character: str) -> str:
    """Return how JSON writes a character if not as itself."""
    return "".join(
        f"\\u{unit:04x}" for (unit,) in struct.iter_unpack(">H", character.encode("utf-16-be"))
    )


def as_text(result: Run, rows: Rows | None) -> str:
    """Return the summary as a person wants to read it."""
    statistics = result.statistics
    seconds = statistics.uptime_seconds
    new = result.read - result.known
    published = max(statistics.published - new, 0)
    lines = [
        f"events read: {result.read:,}, published by handlers: {published:,}, "
        f"seconds: {seconds:.2f}"
    ]
    if result.bad_lines:
        what = "the rest is unread" if result.is_input_bad else "skipped"
        lines.append(f"bad lines: {result.bad_lines:,}, {what}")
    if result.store is not None:
        lines.append(
            f"kept in {_cell(result.store.path)}; known already: {result.known:,}, "
            f"left over from before: {result.left_before:,}"
        )
    if result.stopped_by is not None:
        lines.append(f"stopped by {result.stopped_by}; events left: {result.left:,}")
    groups: Rows = [
        {
            "group": name,
            "succeeded": _succeeded(group),
            "attempts failed": group.failed_attempts,
            "dead letters": group.dead_lettered,
            "left": group.lag,
            "events/s": round(_rate(group.handled, seconds)),
            "p50": _duration(group.p50),
            "p99": _duration(group.p99),
        }
        for name, group in statistics.groups.items()
    ]
    lines += ["", *table(groups)]
    if rows:
        lines += ["", *table(rows)]
    return "\n".join(lines)


def _succeeded(group: GroupStatistics) -> int:
    """Return how many deliveries ended without a dead letter, one counted for each dead letter."""
    return max(group.handled - group.dead_lettered, 0)


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds else 0.0


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


def table(rows: Rows) -> list[str]:
    """Return lines with the first column at the left and the others at the right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_cell(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells
    ]


def _cell(value: Any) -> str:
    return escaped(f"{value:,}" if type(value) is int else str(value))
