"""Showing what was measured: as a table, as JSON, beside an earlier JSON, in the README."""

import json
import os
import platform
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs

from benchmarks import peers
from benchmarks.measuring import Figure, Report

BEGIN = "<!-- What follows is written by: python -m benchmarks --readme benchmarks/README.md -->"
END = "<!-- end of what the benchmarks write -->"


def machine() -> dict[str, str]:
    """Return what a reader has to know of where it was measured."""
    return {
        "machine": f"{platform.system()} on {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in ("trio", "triobus")},
        **peers.versions(),
    }


def number(value: float | None) -> str:
    """Return a figure with as many digits as mean something, a dash where there is none."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 10 else f"{value:.1f}"


def ratio(figure: Figure) -> str:
    """Return the ratio to the limit; of a peer, how many times it is behind."""
    if figure.ratio is None:
        return ""
    if figure.kind == "peer" and figure.ratio >= 1:
        return f"1/{figure.ratio:,.0f}" if figure.ratio >= 10 else f"1/{figure.ratio:.1f}"
    if figure.kind == "peer":
        return f"{1 / figure.ratio:.1f}"
    return f"{figure.ratio:.2f}"


def bound(figure: Figure) -> str:
    """Return the bound."""
    if figure.bound is None:
        return ""
    if figure.kind == "peer":
        return f"1/{figure.bound:g}"
    return f"{figure.bound:g}"


def table(report: Report) -> str:
    """Return a table of a benchmark for a terminal."""
    width = max(len(figure.name) for figure in report.figures) + 2
    lines = [
        "",
        report.title,
        f"{'':{width}}{'median':>12}  {'unit':9}{'spread':>7}{'ratio':>9}{'bound':>8}",
    ]
    for figure in report.figures:
        line = (
            f"{figure.name:{width}}{number(figure.median):>12}  {figure.unit:9}"
            f"{figure.spread:7.0%}{ratio(figure):>9}{bound(figure):>8}"
        )
        if figure.is_reached is False:
            line += "  not reached"
        lines.append(line.rstrip())
    lines += [f"  {figure.name} lacks: {figure.lacks}" for figure in report.figures if figure.lacks]
    lines += [f"  {remark}" for remark in report.remarks]
    return "\n".join(lines)


def write_json(path: Path, reports: Sequence[Report]) -> None:
    """Write the figures, and where they were measured."""
    data = {"machine": machine(), "reports": [attrs.asdict(report) for report in reports]}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[tuple[str, str], Figure]:
    """Return the figures of an earlier run, by benchmark and name.

    Raises `ValueError` for a file that is none.
    """
    try:
        reports = json.loads(path.read_text(encoding="utf-8"))["reports"]
        return {
            (report["name"], figure["name"]): Figure(**figure)
            for report in reports
            for figure in report["figures"]
        }
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what --json writes: {error!r}") from None


def worse(reports: Iterable[Report], earlier: Mapping[tuple[str, str], Figure]) -> list[str]:
    """Return a line for each ratio that is worse than it was by more than the rounds differ.

    Less than a hundredth is no difference: a single round differs from nothing.
    """
    lines = []
    for report in reports:
        for figure in report.figures:
            before = earlier.get((report.name, figure.name))
            if before is None or figure.ratio is None or before.ratio is None:
                continue
            loss = (before.ratio - figure.ratio) * (1 if figure.is_more_better else -1)
            spread = max(figure.ratio_spread, before.ratio_spread)
            if loss > max(spread, before.ratio / 100):
                lines.append(
                    f"{report.name}: {figure.name}: the ratio was {before.ratio:.3g} and is "
                    f"{figure.ratio:.3g}; the rounds differ by {spread:.2g}"
                )
    return lines


def markdown(reports: Sequence[Report]) -> str:
    """Return the README's section: ratios first."""
    told = machine()
    lines = [BEGIN, ""]
    for report in reports:
        lines += [f"**{report.title}**", "", "| | ratio | median | spread |", "|---|--:|--:|--:|"]
        for figure in report.figures:
            name = f"{figure.name} ({figure.lacks})" if figure.lacks else figure.name
            value = f"{number(figure.median)} {figure.unit}".strip()
            lines.append(f"| {name} | {ratio(figure) or '-'} | {value} | {figure.spread:.0%} |")
        lines += ["", *[" ".join(report.remarks), ""] * bool(report.remarks)]
    lines += [
        "Measured on "
        + ", ".join([told.pop("machine"), *(f"{name} {found}" for name, found in told.items())])
        + ".",
        "",
        END,
    ]
    return "\n".join(lines)


def write_readme(path: Path, reports: Sequence[Report]) -> None:
    """Rewrite what stands between the markers. Raises `ValueError` where there are none."""
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{path} has no markers: put these two lines in it:\n{BEGIN}\n{END}")
    section = markdown(reports)
    path.write_text(pattern.sub(lambda _: section, text), encoding="utf-8")


def plot(path: Path, reports: Sequence[Report]) -> None:
    """Draw bar charts: the ratios of the bus to its limits, and the rates beside the peers'."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    shown: list[tuple[Report, list[Figure]]] = []
    for report in reports:
        for unit in dict.fromkeys(figure.unit for figure in report.figures):
            same = [f for f in report.figures if f.unit == unit and f.median]
            if len(same) > 1:
                shown.append((report, same))
    heights = [len(figures) + 2 for _, figures in shown]
    figure, panels = pyplot.subplots(
        len(shown), 1, figsize=(9, 0.32 * sum(heights)), height_ratios=heights, squeeze=False
    )
    for (report, figures), panel in zip(shown, panels[:, 0], strict=True):
        medians: list[Any] = [each.median for each in figures]
        colours = [
            {"limit": "#d6a24a", "bus": "#1f6f8b", "peer": "#9aa5b1"}[each.kind] for each in figures
        ]
        bars = panel.barh([each.name for each in figures], medians, color=colours)
        panel.bar_label(bars, [f" {number(each)}" for each in medians], fontsize=7)
        panel.invert_yaxis()
        is_wide = max(medians) > 50 * min(medians)
        if is_wide:
            panel.set_xscale("log")
        panel.margins(x=0.15)
        about = [word for word in (figures[0].unit, "logarithmic" * is_wide) if word]
        title = f"{report.title} ({', '.join(about)})" if about else report.title
        panel.set_title(title, fontsize=9, loc="left")
        panel.tick_params(labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, format="svg")
    pyplot.close(figure)
