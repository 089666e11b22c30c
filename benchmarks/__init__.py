"""Benchmarks of triobus: `python -m benchmarks throughput` and `python -m benchmarks idle`.

Every figure stands beside a limit that was measured in the same run, in rounds that take turns;
only the ratios travel from one machine to another.
"""
