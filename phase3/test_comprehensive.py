#!/usr/bin/env python3
"""The compatibility suite: `python3 test_comprehensive.py --model NAME`; `jetllm check NAME` is the same."""

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_VENV_PYTHON = _ROOT / ".venv" / "bin" / "python"


def start() -> int:
    """Run this checkout's harness, in the checkout's own environment where this Python lacks something."""
    # Run as a script, Python looks into phase3/ first; the package itself lies one above.
    sys.path[:] = [
        str(_ROOT),
        *(path for path in sys.path if Path(path or ".").resolve() != _ROOT / "phase3"),
    ]
    try:
        from phase3.command import main
    except ModuleNotFoundError as error:
        if _VENV_PYTHON.is_file() and Path(sys.prefix).resolve() != (_ROOT / ".venv").resolve():
            os.execv(_VENV_PYTHON, [str(_VENV_PYTHON), __file__, *sys.argv[1:]])  # noqa: S606 - no shell
        sys.stderr.write(f"error: {error.name} is not installed\n    hint: make serve, or pip install .\n")
        return 2
    return main()


if __name__ == "__main__":
    sys.exit(start())
