"""HTTP."""

from inference.api.app import create_app
from inference.api.limits import Limits
from inference.api.server import HttpServer, serve

__all__ = ["HttpServer", "Limits", "create_app", "serve"]
