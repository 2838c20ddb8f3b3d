"""The reference of the log-likelihoods: transformers itself, in float32, without any code of JetLLM.

usage: python -m tests.clients.reference prepare GGUF DIRECTORY
       python -m tests.clients.reference score GGUF < pairs.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(action: str, weights: str, directory: str = "") -> None:
    """Prepare what a comparison needs, or score the pairs on stdin and print the scores."""
    if action == "prepare":
        _tokenizer(Path(weights)).save_pretrained(Path(directory) / "tokenizer")
        write_float32(Path(weights), Path(directory) / "float32.gguf")
    else:
        sys.stdout.write(json.dumps(score(Path(weights), json.load(sys.stdin))))


def score(weights: Path, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    """Return of each continuation its log-likelihood after its context, and whether it is the greedy one.

    An empty context is the model's begin-of-text token, as evaluation harnesses have it.
    """
    torch.set_num_threads(1)  # beside other work, threads that wait for each other take minutes
    tokenizer = _tokenizer(weights)
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, dtype=torch.float32
    ).eval()
    found = []
    for context, continuation in pairs:
        before = tokenizer(context, add_special_tokens=False).input_ids
        whole = tokenizer(context + continuation, add_special_tokens=False).input_ids
        if not context:
            before, whole = [tokenizer.bos_token_id], [tokenizer.bos_token_id, *whole]
        with torch.no_grad():
            logprobs = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), dim=-1)
        places = range(len(before) - 1, len(whole) - 1)
        total = sum(float(logprobs[place, whole[place + 1]]) for place in places)
        found.append((total, all(int(logprobs[place].argmax()) == whole[place + 1] for place in places)))
    return found


def write_float32(source: Path, target: Path) -> None:
    """Write *source* with every tensor as float32: the same numbers, which no engine need round again."""
    reader = gguf.GGUFReader(source)
    fields: dict[str, Any] = dict(reader.fields)
    writer = gguf.GGUFWriter(target, fields.pop("general.architecture").contents())
    for name, field in fields.items():
        if name.startswith("GGUF.") or name == "general.file_type":
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tokenizer(weights: Path) -> Any:
    return AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
