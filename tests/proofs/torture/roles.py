"""The process that forks children, each of which plays a role: `children.serving` starts it."""

from tests.proofs.torture import fault_lives, lives
from tests.proofs.torture.children import serve

if __name__ == "__main__":
    serve(lives.ROLES | fault_lives.ROLES)
