"""`python -m triobus`, and the script of the same name."""

import sys

from triobus._cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
