"""The script of the scripted model: its exact times, its memory and its one planted defect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

FILE = "script.json"
KEY = "model"
SHARED_MEMORY = Path("/dev/shm")
SEGMENT = "jetllm-scripted-"

Defect = Literal[
    "gibberish",  # words of random letters
    "loop",  # one word over and over
    "special_tokens",  # the end of a turn is written out
    "no_template",  # turns are given to the model as bare text, which it goes on with for ever
    "nondeterministic",  # greedy answers vary
    "ignores_stop",
    "ignores_max_tokens",
    "ignores_seed",
    "torn_unicode",  # a character that is more than a byte is not put together
    "truncates_context",  # a prompt that is too long is cut instead of refused
    "slot_never_frees",  # a cancelled generation goes on
    "mixes_slots",  # those computed at once get each other's words
    "fails_under_load",  # a request that is not alone gets an error
    "leak",  # of `leak_bytes` for each request
    "memory_hog",  # takes `hog_bytes` more at its third request
    "slow_unload",  # the end of the process takes `unload_s`
    "refuses_to_load",
    "wears_out",  # the third load fails
    "keeps_memory",  # leaves `kept_bytes` behind, which no process has
]
DEFECTS: tuple[Defect, ...] = get_args(Defect)


@dataclass(frozen=True)
class ModelScript:
    """What the model does.

    Token number n, counted from 0, is sent ``ttft_s + prompt_tokens * prefill_s + n * itl_s`` after the
    request arrived, whatever became of those before.

    Args:
        held_bytes: taken when it is loaded.
        slots: sequences at once; ``None``: as many as the settings say.
        noise_seed: of blocks that requests take and give back, as an engine's caches do.
        log: file that gets a line of JSON for each generation: when its request arrived, and when each
            token was sent, on the system's monotonic clock.
    """

    ttft_s: float = 0.004
    prefill_s: float = 0.000_01
    itl_s: float = 0.002
    held_bytes: int = 48 * 2**20
    slots: int | None = None
    defect: Defect | None = None
    leak_bytes: int = 100_000
    hog_bytes: int = 128 * 2**20
    kept_bytes: int = 32 * 2**20
    unload_s: float = 12.0
    noise_seed: int | None = None
    log: str | None = None


def write_script(directory: Path, script: ModelScript) -> None:
    """Make *directory* the weights of a model that does as *script* says."""
    directory.mkdir(exist_ok=True)
    (directory / FILE).write_text(json.dumps({KEY: asdict(script)}))


def read_script(directory: Path) -> dict[str, Any]:
    """Return what the weights hold: of a scripted model under its key, else of the scripted orders."""
    found: dict[str, Any] = json.loads((directory / FILE).read_text())
    return found


def parsed(script: Mapping[str, Any]) -> ModelScript:
    """Return the model's part of a script."""
    return ModelScript(**script[KEY])
