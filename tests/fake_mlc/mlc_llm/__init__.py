"""A stand-in for mlc_llm: the documented surface, deterministic tokens, and the known failures.

It does what /docs/mlc.md says of the real one, on the same causes: a bad file hangs the constructor,
``top_logprobs`` above 5, a broken schema and ids outside the vocabulary end the engine's thread, a
bias outside it is SIGSEGV, a cut library SIGBUS, ``abort`` never ends a stream, two live requests of
one id hang the first, and a stream of the synchronous engine that is left early poisons the next.

``fake.json`` in the model directory slows it down or breaks it further: ``step_s`` (per token),
``prefill_s`` (per chunk of a prompt; at work with ``prefill_cpu``), ``load`` ("hang", "silent", "raise",
"exit"), ``load_cpu_s`` (work in the constructor), ``die_after_tokens`` (the engine's thread, or with
``dies`` "callback" the one that hands tokens out), ``signal_after_tokens`` with ``signal``, ``answer``
(text to give instead of the model's; "$NAME" is a variable of C's environment), ``cache_name`` (the one
file name that it knows). Without that file the script is the one that was compiled into the library.

``python -m mlc_llm`` converts and compiles; see `build.script` for its script.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["AsyncMLCEngine", "MLCEngine", "protocol", "serve"]
__version__ = "0.1.dev0"


def __getattr__(name: str) -> Any:
    """Import the engines when one is asked for: the steps of a build ask for none."""
    if name not in __all__:
        raise AttributeError(name)
    if name in ("protocol", "serve"):
        return importlib.import_module(f".{name}", __name__)
    return getattr(importlib.import_module(".serve", __name__), name)
