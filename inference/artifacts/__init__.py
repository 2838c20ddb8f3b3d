"""Weights on disk: where they come from, where they are kept, whether they are sound."""
