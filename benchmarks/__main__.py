"""The command line of the benchmarks."""

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks import (
    batches,
    durable,
    effects,
    fanout,
    idle,
    instruments,
    latency,
    measuring,
    memory,
    ordering,
    recovery,
    report,
    scheduled,
    startup,
    throughput,
)

BENCHMARKS = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        throughput,
        latency,
        fanout,
        ordering,
        durable,
        effects,
        batches,
        scheduled,
        recovery,
        memory,
        idle,
        startup,
        instruments,
    )
}
ROUNDS, QUICK_ROUNDS = 5, 3


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks that were asked for; return 1 if one is worse than `--against`."""
    summaries = [
        f"{name}: {(module.__doc__ or '').splitlines()[0]}" for name, module in BENCHMARKS.items()
    ]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure triobus against its limits and its peers.",
        epilog="\n".join(summaries),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; by default all")
    parser.add_argument("--quick", action="store_true", help="less work and fewer rounds")
    parser.add_argument(
        "--rounds", type=int, help=f"how many rounds (default {ROUNDS}, quick {QUICK_ROUNDS})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw bar charts")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE.json",
        help="compare the ratios with an earlier --json; exit with 1 if one is worse by more than "
        "the rounds differ",
    )
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="rewrite the section between its markers"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: give 1 or more")
    for path in (options.json, options.plot, options.readme):
        if path is not None and not path.parent.is_dir():
            parser.error(f"{path}: there is no directory {path.parent}")
    try:
        earlier = report.read_json(options.against) if options.against else {}
    except ValueError as error:
        parser.error(f"--against {error}")

    started = time.monotonic()
    reports = []
    for name in options.names or BENCHMARKS:
        with ExitStack() as stack:
            benchmark = BENCHMARKS[name].benchmark(stack, quick=options.quick)
            rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
            reports.append(measuring.run(benchmark, rounds))
    print("\n".join(f"{name} {found}" for name, found in report.machine().items()))
    for each in reports:
        print(report.table(each))
    print(f"\nIt took {time.monotonic() - started:.0f} s.")

    if options.json:
        report.write_json(options.json, reports)
    if options.plot:
        report.plot(options.plot, reports)
    if options.readme:
        report.write_readme(options.readme, reports)
    lines = report.worse(reports, earlier)
    if lines:
        print("\nWorse than before:", *lines, sep="\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
