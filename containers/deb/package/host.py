"""Runs the host's side of JetLLM from where it lies, whatever the caller's environment says."""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.argv[0] = "jetllm"
runpy.run_module("inference.appliance", run_name="__main__")
