"""The summary of a run, as tables or as JSON."""

from itertools import chain
from types import ModuleType
from typing import Any

import msgspec

from triobus._checks import is_async
from triobus._cli._messages import CommandError
from triobus._cli._output import cell, json_text, table
from triobus._cli._run import Report, Run
from triobus._cli._stores import name_of

REPORT = "triobus_report"
"""The function of the user's module that returns rows to print below the summary."""

Rows = list[dict[str, Any]]


def report_of_store(module: ModuleType) -> Report | None:
    """Return the module's `triobus_report` if it is async, and so wants the store."""
    report: Report | None = getattr(module, REPORT, None)
    return report if is_async(report) else None


def report_rows(module: ModuleType, run: Run) -> Rows | None:
    """Return the rows of the module's `triobus_report`, if it has one; raises `CommandError`."""
    report = getattr(module, REPORT, None)
    if report is None:
        return None
    try:
        rows = msgspec.to_builtins(run.reported if is_async(report) else report())
        if isinstance(run.reported, Exception):
            raise run.reported
    except Exception as error:
        # It is the user's function, which may raise anything.
        raise CommandError(
            f"{REPORT}() of {module.__name__!r} failed: {type(error).__name__}: {str(error)!r}"
        ) from error
    if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
        raise CommandError(f"{REPORT}() of {module.__name__!r} did not return a list of dicts")
    return rows


def as_json(run: Run, rows: Rows | None) -> str:
    """Return the summary as a JSON object."""
    summary = _summary(run) | ({} if rows is None else {"report": rows})
    return json_text(summary)


def _summary(run: Run) -> dict[str, Any]:
    statistics = run.statistics
    seconds = statistics.uptime_seconds
    summary = {
        "read": run.read,
        "bad_lines": run.bad_lines,
        "stopped_by": run.stopped_by,
        "published": statistics.published,
        "scheduled": statistics.scheduled,
        "seconds": seconds,
        "groups": {
            name: {
                "handled": group.handled,
                # Of a delivery with two dead letters both are counted.
                "succeeded": max(group.handled - group.dead_lettered, 0),
                "failed_attempts": group.failed_attempts,
                "dead_lettered": group.dead_lettered,
                "left": group.lag,
                "per_second": group.handled / seconds if seconds else 0.0,
                "p50": group.p50,
                "p99": group.p99,
            }
            for name, group in statistics.groups.items()
        },
    }
    if run.store is not None:
        kept = {"known_already": run.known, "left_before": run.left_before}
        summary |= {"store": name_of(run.store), **kept}
    return summary


def as_text(run: Run, rows: Rows | None) -> str:
    """Return the summary as a person wants to read it."""
    summary = _summary(run)
    published = max(summary["published"] - run.read + run.known, 0)
    lines = [
        f"events read: {run.read:,}, published by handlers: {published:,}, "
        f"seconds: {summary['seconds']:.2f}"
    ]
    if summary["scheduled"]:
        lines.append(f"scheduled for later: {summary['scheduled']:,}")
    if run.bad_lines:
        what = "the rest is unread" if run.is_input_bad else "skipped"
        lines.append(f"bad lines: {run.bad_lines:,}, {what}")
    if run.store is not None:
        lines.append(
            f"kept in {cell(name_of(run.store))}; known already: {run.known:,}, "
            f"left over from before: {run.left_before:,}"
        )
    if run.stopped_by is not None:
        lines.append(f"stopped by {run.stopped_by}; events left: {run.left:,}")
    groups = [
        {
            "group": name,
            "succeeded": group["succeeded"],
            "attempts failed": group["failed_attempts"],
            "dead letters": group["dead_lettered"],
            "left": group["left"],
            "events/s": round(group["per_second"]),
            "p50": _duration(group["p50"]),
            "p99": _duration(group["p99"]),
        }
        for name, group in summary["groups"].items()
    ]
    lines += ["", table(groups, right=set(groups[0]) - {"group"})]
    if rows:
        lines += ["", table(rows, right={*chain(*rows)} - {*list(rows[0])[:1]})]
    return "\n".join(lines)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"
