"""What is measured, in rounds that take the competitors in turn, and what comes of it."""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import attrs

Unit = Literal["", "events/s", "calls/s", "us", "ms", "s", "B", "MiB", "switches", "ratio"]
Kind = Literal["bus", "limit", "peer"]
RATES: frozenset[str] = frozenset(["events/s", "calls/s"])
"""The units of which more is better."""


@attrs.frozen(eq=False)
class Competitor:
    """Something that is measured once in every round."""

    name: str
    measure: Callable[[], Mapping[str, float | None] | float | None]
    """Return a figure, several by name, or None where it cannot be told on this machine."""
    unit: Unit = "events/s"
    limit: str = ""
    """The competitor beside whose figures these are shown, if it is not a limit itself."""
    bound: float | None = None
    """The ratio to reach; without a limit, the figure itself."""
    bounds: Mapping[str, float] = attrs.field(factory=dict)
    """The same for each of several figures."""
    lacks: str = ""
    """What a peer does not promise that triobus does."""
    kind: Kind = "bus"
    is_fixed: bool = False
    """Whether one round is enough, for virtual time and counts are the same in each."""


@attrs.frozen
class Benchmark:
    """Competitors at the same work."""

    name: str
    title: str
    competitors: Sequence[Competitor]
    notes: Sequence[str] = ()
    """What a reader has to know besides."""


@attrs.frozen
class Figure:
    """What one competitor came to."""

    name: str
    unit: str
    median: float | None
    spread: float = 0.0
    """How far apart the rounds are, as a share of the median."""
    limit: str = ""
    ratio: float | None = None
    """The median of the rounds' ratios to the limit: the more the better for rates, else less. For
    a peer, how many times the limit is ahead of it."""
    ratio_spread: float = 0.0
    """How far apart these are, in the ratio itself."""
    bound: float | None = None
    lacks: str = ""
    kind: Kind = "bus"

    @property
    def is_reached(self) -> bool | None:
        """Whether the bound was kept; None if there is none, or no figure."""
        value = self.ratio if self.limit else self.median
        if self.bound is None or value is None:
            return None
        return value >= self.bound if self.is_more_better else value <= self.bound

    @property
    def is_more_better(self) -> bool:
        """Whether the more is the better, of the ratio."""
        return self.kind == "peer" or self.unit in RATES


@attrs.frozen
class Report:
    """What a benchmark came to."""

    name: str
    title: str
    figures: Sequence[Figure]
    notes: Sequence[str] = ()

    @property
    def remarks(self) -> list[str]:
        """What the ratios are to, and the notes."""
        limits = sorted({figure.limit for figure in self.figures if figure.limit})
        return [f"Ratios are to: {'; '.join(limits)}."] * bool(limits) + [*self.notes]


def run(benchmark: Benchmark, rounds: int) -> Report:
    """Measure every competitor once a round, each round in the same order."""
    found: dict[tuple[Competitor, str], list[float | None]] = {}
    by_name: dict[str, list[float | None]] = {}
    for number in range(rounds):
        for competitor in benchmark.competitors:
            if number and competitor.is_fixed:
                continue
            _tell(f"{benchmark.name}: round {number + 1} of {rounds}: {competitor.name}")
            measured = competitor.measure()
            by_key = measured if isinstance(measured, Mapping) else {"": measured}
            for key, value in by_key.items():
                values = found.setdefault((competitor, key), [])
                values.append(value)
                by_name[_joined(competitor.name, key)] = values
    _tell("")
    figures = []
    for (competitor, key), values in found.items():
        limit = _joined(competitor.limit, key)
        figures.append(_figure(competitor, key, values, by_name.get(limit, ())))
    return Report(benchmark.name, benchmark.title, figures, benchmark.notes)


def _joined(name: str, key: str) -> str:
    return f"{name}, {key}" if key else name


def _figure(
    competitor: Competitor,
    key: str,
    values: Sequence[float | None],
    limits: Sequence[float | None],
) -> Figure:
    pairs = [pair for pair in zip(values, limits, strict=False) if all(pair)]
    if competitor.kind == "peer" and competitor.unit in RATES:
        pairs = [(limit, value) for value, limit in pairs]
    ratios = [value / limit for value, limit in pairs if value and limit]
    told = [value for value in values if value is not None]
    return Figure(
        name=_joined(competitor.name, key),
        unit=competitor.unit,
        median=statistics.median(told) if told else None,
        spread=_range(told) / statistics.median(told) if any(told) else 0.0,
        limit=competitor.limit,
        ratio=statistics.median(ratios) if ratios else None,
        ratio_spread=_range(ratios),
        bound=competitor.bounds.get(key, competitor.bound),
        lacks=competitor.lacks,
        kind=competitor.kind,
    )


def _range(values: Sequence[float]) -> float:
    return max(values) - min(values) if values else 0.0


def _tell(line: str) -> None:
    """Show how far it is: one line that is written over where somebody looks at it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    elif line:
        print(line, file=sys.stderr, flush=True)
