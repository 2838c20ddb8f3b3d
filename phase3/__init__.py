"""The harness: proves a model on the machine that serves it."""
