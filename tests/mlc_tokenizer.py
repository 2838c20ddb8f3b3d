"""The tokenizer of the tiny checkpoints: all bytes, a few words, three special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = (
    "the of and to in is was for on that with as by at from his her it an were are which this be had"
    " not but have one new first also time after two years city people world state music house river"
    " light water small large under over where when year north south king game book team song film"
)
WORDS = _TEXT.split()


def write_tokenizer(directory: Path, kind: str, chat: bool, context_tokens: int) -> None:
    """Write tokenizer.json, or for *kind* "vocab" vocab.json and merges.txt, and the settings."""
    vocabulary, merges = _vocabulary()
    last = specials()
    settings: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": context_tokens}
    settings |= {"bos_token": IM_START, "eos_token": IM_END} if chat else {"eos_token": END_OF_TEXT}
    settings |= {"chat_template": CHATML} if chat else {}
    write_json(directory / "tokenizer_config.json", settings)
    if kind == "vocab":
        write_json(directory / "vocab.json", {**vocabulary, **last})
        text = "".join(f"{left} {right}\n" for left, right in merges)
        (directory / "merges.txt").write_text(f"#version: 0.2\n{text}", encoding="utf-8")
        return
    added = [
        {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for token, number in last.items()
    ]  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE",
        "vocab": {**vocabulary, **last},
        "merges": [f"{left} {right}" for left, right in merges],
    }
    tree = {"version": "1.0", "added_tokens": added, "pre_tokenizer": level, "decoder": level, "model": model}
    write_json(directory / "tokenizer.json", tree)


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the tokens but the special ones, and the merges that make each word, letter by letter."""
    tokens, merges = list(_alphabet()), []
    for word in WORDS:
        whole = f"Ġ{word}"
        for size in range(2, len(whole) + 1):
            if whole[:size] not in tokens:
                tokens.append(whole[:size])
                merges.append((whole[: size - 1], whole[size - 1]))
    return {token: number for number, token in enumerate(tokens)}, merges


def specials() -> dict[str, int]:
    """Return the ids of the special tokens, which come last."""
    begin = len(_vocabulary()[0])
    return {token: begin + i for i, token in enumerate((END_OF_TEXT, IM_START, IM_END))}


def word_ids() -> set[int]:
    """Return the ids of the tokens that are whole words."""
    vocabulary = _vocabulary()[0]
    return {vocabulary[f"Ġ{word}"] for word in WORDS}


def _alphabet() -> str:
    """Return GPT-2's character for each byte: itself where it is seen, one from 256 on where not."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in seen]
    return "".join(chr(byte) if byte in seen else chr(256 + hidden.index(byte)) for byte in range(256))


def write_json(path: Path, tree: Any) -> None:
    """Write a file as a checkpoint has it."""
    path.write_text(json.dumps(tree, indent=1), encoding="utf-8")
