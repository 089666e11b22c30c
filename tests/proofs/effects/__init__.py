"""Effects exactly once: a ledger that is killed at random, and counted in SQL."""
