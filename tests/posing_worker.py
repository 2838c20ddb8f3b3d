"""The worker process in which the scripted backends stand for transformers."""

import sys
from pathlib import Path

import inference.backends
from inference.runtime.worker_main import main

POSING = str(Path(__file__).parent / "posing")
"""The folder of the modules that stand for others."""

if __name__ == "__main__":
    inference.backends.__path__.insert(0, POSING)
    main(sys.argv[1:])
