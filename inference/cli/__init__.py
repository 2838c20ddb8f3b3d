"""`jetllm`: the command line.

Exit codes, as docs/cli.md has them: 0 done; 1 failed, explained on standard error; 2 wrong usage; 3 the
command needs a daemon and none runs; 70 a defect of ours; 75 another daemon holds the state directory;
130 interrupted. `jetllm check` and `jetllm lint` have verdicts of their own.
"""

from inference.cli.main import main

__all__ = ["main"]
