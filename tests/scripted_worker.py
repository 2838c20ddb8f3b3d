"""The worker process with the scripted backend beside the real ones."""

import sys
from pathlib import Path

import inference.backends
from inference.runtime.worker_main import main

inference.backends.__path__.append(str(Path(__file__).parent / "backends"))

if __name__ == "__main__":
    main(sys.argv[1:])
