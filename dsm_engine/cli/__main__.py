"""`python -m dsm_engine.cli`, as torchrun starts it."""

import sys

from dsm_engine.cli import main

# The guard matters: Megatron's checkpoint writer starts processes that import this module again.
if __name__ == "__main__":
    sys.exit(main())
