"""What requests and errors look like."""

from . import error_protocol

__all__ = ["error_protocol"]
