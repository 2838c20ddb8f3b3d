"""`jetllm`: the command line.

Exit codes: 0 done; 1 an error, explained on standard error; 2 wrong usage; 75 another daemon
holds the state directory; 130 interrupted.
"""

from inference.cli.main import main

__all__ = ["main"]
