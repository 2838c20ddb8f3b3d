"""The worker process, in which a load that does nothing is given up soon."""

import sys

import inference.backends._mlc_load
from inference.runtime.worker_main import main

inference.backends._mlc_load.STALLED_AFTER_S = 0.5

if __name__ == "__main__":
    main(sys.argv[1:])
