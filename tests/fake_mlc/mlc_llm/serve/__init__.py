"""The engines and their configuration."""

from .config import EngineConfig
from .engine import AsyncMLCEngine, MLCEngine

__all__ = ["AsyncMLCEngine", "EngineConfig", "MLCEngine"]
