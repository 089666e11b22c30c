"""The command line of the benchmarks."""

import argparse
import sys

from benchmarks import durable, idle, throughput


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks that were asked for; return 1 if a bound was missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure triobus against its limits."
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="throughput: publishing and handling against a raw memory channel, and the memory of "
        "a queued event; idle: wake-ups of a bus with nothing to do; durable: a bus with an SQLite "
        "store against raw sqlite3. By default all.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer events and rounds")
    parser.add_argument("--rounds", type=int, default=None, help="how many rounds (default 9)")
    options = parser.parse_args(arguments)
    benchmarks = {"throughput": throughput.main, "idle": idle.main, "durable": durable.main}
    unknown = [name for name in options.names if name not in benchmarks]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are: {', '.join(benchmarks)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: give 1 or more")
    is_good = True
    for name in options.names or benchmarks:
        is_good &= benchmarks[name](quick=options.quick, rounds=options.rounds)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
