"""Data that the harness ships: a text, prompts, and where they come from (README.md)."""
