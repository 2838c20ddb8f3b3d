"""Errors of a request."""


class BadRequestError(ValueError):
    """A request that the engine refuses."""
