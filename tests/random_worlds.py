"""Random worlds and requests, for the properties that every selection has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from inference.device.memory import Memory
from inference.registry import ModelSpec, Registry
from inference.registry.evidence import Evidence
from inference.registry.spec import Status
from inference.selection.selector import Resident, World
from inference.selection.tasks import Task
from tests.worlds import GIB, MB, entry

KEYS = [(f"m{model}", variant) for model in range(4) for variant in ("mlc", "q4", "f32")]
VARIANTS = {
    "mlc": {"backend": "mlc", "quantization": "q4f16_1"},
    "q4": {"backend": "llamacpp", "quantization": "Q4_0"},
    "f32": {"backend": "transformers"},
}

entries = st.builds(
    entry,
    parameters=st.sampled_from(["100M", "1B", "3B"]),
    megabytes=st.sampled_from([900, 3000]),
    use_cases=st.sampled_from(
        [["conversation"], ["text_generation", "code"], ["embedding"], ["summarization"]]
    ),
    context_length=st.sampled_from([600, 4096, 9000]),
    layers=st.sampled_from([None, 10, 40]),
    kv_heads=st.sampled_from([2, 64]),
    quality=st.sampled_from([None, 0.5, 0.7]),
    chat=st.sampled_from([None, "none", "chatml"]),
    status=st.sampled_from(["experimental", "experimental", "incompatible"]),
    min_available_memory=st.sampled_from([None, 2500]),
    variants=st.lists(st.sampled_from(sorted(VARIANTS)), unique=True, min_size=1).map(
        lambda names: {name: VARIANTS[name] for name in names}
    ),
)
residents = st.builds(
    Resident,
    model=st.sampled_from([model for model, _ in KEYS]),
    variant=st.sampled_from(["mlc", "q4"]),
    state=st.sampled_from(["queued", "starting", "ready", "stopping"]),
    evictable=st.booleans(),
    memory_bytes=st.integers(1, 2 * GIB),
    context_tokens=st.sampled_from([None, 512, 4096]),
)
evidence = st.builds(
    Evidence,
    decode_tokens_per_s=st.sampled_from([None, 3.0, 30.0]),
    memory_bytes=st.sampled_from([None, GIB]),
    quality=st.sampled_from([None, 0.6]),
    status=st.sampled_from([None, Status.VERIFIED, Status.INCOMPATIBLE]),
)
asks = st.fixed_dictionaries(
    {
        "model": st.sampled_from([None, None, "m0"]),
        "variant": st.none(),
        "task": st.sampled_from([Task.CONVERSATION, Task.CODE, Task.TEXT_GENERATION, Task.EMBEDDING]),
        "speed": st.sampled_from(["fast", "balanced", "quality"]),
        "chat": st.booleans(),
        "context_tokens": st.sampled_from([None, None, 100, 2000, 5000]),
    }
)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A world of up to four models, of which anything may be known or not."""
    raw = draw(st.lists(entries, min_size=1, max_size=4))
    specs = {f"m{i}": ModelSpec.model_validate_json(json.dumps(value)) for i, value in enumerate(raw)}
    by_key: Callable[[Any], Any] = lambda values: st.dictionaries(st.sampled_from(KEYS), values, max_size=6)  # noqa: E731
    available = draw(st.integers(1, 8)) * GIB
    known = draw(st.booleans())
    return World(
        registry=Registry(specs, Path("models.json"), "0" * 64),
        backends=draw(st.frozensets(st.sampled_from(["mlc", "llamacpp", "transformers"]), min_size=2)),
        weights_bytes=draw(st.none() | by_key(st.just(400 * MB))),
        memory=Memory(16 * GIB, available, None, GIB, available - GIB)
        if known
        else Memory(None, None, None, 0, None),
        residents=tuple(draw(st.lists(residents, max_size=2, unique_by=lambda r: (r.model, r.variant)))),
        bandwidth_bytes_per_s=draw(st.sampled_from([None, 68e9])),
        slots=draw(st.sampled_from([1, 4])),
        context_tokens=4096,
        cpu_cores=draw(st.sampled_from([None, 4])),
        prompt_cache_bytes=draw(st.sampled_from([0, 256 * MB])),
        container=True,
        incompatible=draw(by_key(st.just("the image does not fit"))),
        evidence=draw(by_key(evidence)),
        variant_corrections=draw(by_key(st.integers(-300 * MB, 300 * MB))),
        backend_corrections=draw(st.dictionaries(st.sampled_from(["mlc", "llamacpp"]), st.just(50 * MB))),
    )
