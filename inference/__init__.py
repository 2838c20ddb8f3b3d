"""JetLLM: language models on NVIDIA Jetson, and on any Linux machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference.inference_engine import InferenceEngine

__version__ = "0.1.0"
__all__ = ["InferenceEngine", "__version__"]


def __getattr__(name: str) -> object:
    # A worker imports this package too, and must start without the daemon's dependencies.
    if name == "InferenceEngine":
        from inference.inference_engine import InferenceEngine

        return InferenceEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
