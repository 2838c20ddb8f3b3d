"""Which model serves a request, and why."""
