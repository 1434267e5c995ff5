"""`python -m bench.step`."""

import sys

from bench.step.measure import main

if __name__ == "__main__":
    sys.exit(main())
