"""`python -m xtuner` is `xtuner`."""

import sys

from xtuner.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
