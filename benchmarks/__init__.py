"""Measurements whose results go into docs/bench-log.md; nothing here is part of the product."""
