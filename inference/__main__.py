"""`python -m inference` is `jetllm`."""

from inference.cli import main

main(prog_name="jetllm")
