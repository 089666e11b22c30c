"""What pytest needs to know about these tests: nothing beyond `pyproject.toml` so far."""
