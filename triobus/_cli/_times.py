"""Times that people give: moments with a time zone, or how long ago."""

import re
from datetime import UTC, datetime, timedelta

from triobus._cli._messages import CommandError

TIMES = "a TIME is 2026-01-31T12:00Z, 2026-01-31T12:00+01:00, or how long ago: 90s, 30m, 2h, 7d"
_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(s|m|h|d|w)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment_of(text: str, now: datetime | None = None) -> datetime:
    """Return the moment that a text stands for. Raises `CommandError` if it is none, or two."""
    now = datetime.now(UTC) if now is None else now
    if text == "now":
        return now
    if ago := _AGO.fullmatch(text):
        try:
            return now - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        except OverflowError:
            raise CommandError(f"{text!r} ago is before the year 1") from None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise CommandError(f"{text!r} is no time: {TIMES}") from None
    if found.utcoffset() is None:
        day = f"{text}T00:00" if len(text) <= len("2026-W01-1") else text
        raise CommandError(
            f"{text!r} could be a time of any zone: write {day}Z for UTC, or the offset of yours, "
            f"such as {day}+02:00"
        )
    try:
        return found.astimezone(UTC)
    except OverflowError:
        raise CommandError(f"{text!r} is before the year 1 or after 9999 in UTC") from None
