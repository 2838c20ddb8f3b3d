"""The recipe: everything that makes one build differ from another, and the key that follows from it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from inference.device.detect import Device

LADDER = ("q4f16_1", "q4f32_1", "q0f16")
"""What is tried when the preferred quantization does not build or does not speak, in this order."""

MAX_CHUNK_TOKENS = 512
BUILDER = 1
"""Raised whenever our own steps make something else of the same checkpoint."""

# Templates of mlc_llm (interface/gen_config.py CONV_TEMPLATES) by config.json's model_type. Ours is the
# checkpoint's own template, rendered in the worker; this one counts only where a checkpoint has none.
_CONVERSATIONS = {
    "gpt2": "gpt2",
    "llama": "LM",
    "qwen2": "chatml",
    "qwen3": "chatml",
    "gemma": "gemma_instruction",
    "gemma2": "gemma_instruction",
    "gemma3": "gemma_instruction",
    "gemma3_text": "gemma_instruction",
    "phi3": "phi-3",
    "mistral": "mistral_default",
}
_PLAIN = "LM"


@dataclass(frozen=True)
class Target:
    """What a library is compiled for.

    Args:
        device: mlc_llm's word: "cuda" or "cpu".
        gpu: the compute capability, such as "8.7"; ``None`` for the CPU, or unknown.
        arch: the processor's instruction set, as in ``uname -m``.
        cpu: the processor's name, for a library that runs on it: it is compiled for that very one.
        l4t: major and minor of the L4T release: with it the driver's ABI and the C library change.
    """

    device: str
    gpu: str | None = None
    arch: str | None = None
    cpu: str | None = None
    l4t: str | None = None


def target_of(device: Device, mlc_device: str) -> Target:
    """Return the target that *device* is, when MLC computes on *mlc_device* ("cuda", "cpu")."""
    kind = mlc_device.partition(":")[0]
    l4t = None if device.l4t is None else ".".join(device.l4t.split(".")[:2])
    if kind == "cpu":
        return Target("cpu", None, device.arch, device.cpu_model, l4t)
    return Target(kind, device.compute_capability, device.arch, None, l4t)


@dataclass(frozen=True)
class Recipe:
    """What one build is made of and for. Equal recipes make the same build.

    Args:
        checkpoint: the SHA-256 of the checkpoint's files.
        quantization: mlc_llm's word.
        context_tokens: the longest sequence that the library is compiled for.
        chunk_tokens: the most tokens of a prompt in one step.
        sequences: the most sequences in one step.
        conversation: the name of mlc_llm's conversation template.
        engine: the identity of the mlc_llm and TVM that make it; see `identity`.
        target: what it is compiled for.
        options: further words of the command line of ``compile``.
    """

    checkpoint: str
    quantization: str
    context_tokens: int
    chunk_tokens: int
    sequences: int
    conversation: str
    engine: str
    target: Target
    options: tuple[str, ...] = ()
    builder: int = BUILDER

    @property
    def key(self) -> str:
        """The name of the build's directory: the SHA-256 of all of it."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, which `from_dict` reads."""
        return asdict(self) | {"options": list(self.options)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Recipe:
        """Rebuild a recipe from its record.

        Raises:
            TypeError, KeyError, ValueError: it is none.
        """
        target = Target(**data["target"])
        return cls(**{**data, "target": target, "options": tuple(data["options"])})


def rungs(preferred: str | None, only: str | None = None) -> tuple[str, ...]:
    """Return the quantizations to try, best first.

    Args:
        preferred: the variant's own.
        only: the one there is: of weights that are quantized already.
    """
    return (only,) if only else tuple(dict.fromkeys((preferred or LADDER[0], *LADDER)))


def conversation_of(model_type: str | None, chat: str | None) -> str:
    """Return the conversation template for a model: the registry's, or the usual one of its family."""
    if chat not in (None, "none", "embedded"):
        return str(chat)
    return _PLAIN if chat == "none" and model_type != "gpt2" else _CONVERSATIONS.get(model_type or "", _PLAIN)


def bits_per_parameter(quantization: str) -> float:
    """Return the size of a weight (docs/mlc.md); for a format that nobody measured its first digit and 1.

    The 4-bit formats of group 32 were measured: 4.5 with half-precision scales, 5 with single.
    """
    known = {"q4f16_1": 4.5, "q4f32_1": 5.0, "q0f16": 16.0, "q0f32": 32.0, "q0bf16": 16.0, "q3f16_1": 3.6}
    if quantization in known:
        return known[quantization]
    digit = re.match(r"q(\d)", quantization)
    return int(digit[1]) + 1.0 if digit and digit[1] != "0" else 16.0
