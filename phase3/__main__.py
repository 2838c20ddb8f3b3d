"""`python -m phase3`: the compatibility suite."""

import sys

from phase3.command import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m phase3"))
