"""`python -m services` is `muster up`."""

import sys

from services.cli.main import main

if __name__ == "__main__":
    main(["up", *sys.argv[1:]])
