"""The scripted backends under a name that the registry knows; their weights hold a script.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from inference.backends import BackendProtocol, LoadOptions
from inference.generation import Chunk, GenerateRequest
from tests.backends import scripted
from tests.model_script import FILE, KEY, read_script
from tests.scripted_model import Model

REQUIRES = ()


def Backend(options: LoadOptions) -> BackendProtocol:
    """Return the scripted model where the script is of one, else the backend that does as prompts say."""
    return Model(options) if KEY in read_script(options.weights) else _Orders(options)


class _Orders(scripted.Backend):
    """See tests/backends/scripted.py; a word that is no order is said, so that any text is a prompt."""

    def __init__(self, options: LoadOptions) -> None:
        super().__init__(dataclasses.replace(options, weights=options.weights / FILE))

    def generate(self, request: GenerateRequest, cancelled: Callable[[], bool]) -> Iterator[Chunk]:
        """Do what the prompt says."""
        orders = " ".join(map(_order, self._prompt(request).split()))
        asked = dataclasses.replace(request, prompt=orders, prompt_ids=None, messages=None)
        return super().generate(asked, cancelled)


def _order(word: str) -> str:
    return word if ":" in word or word in scripted._MISDEEDS else f"say:{word}"
