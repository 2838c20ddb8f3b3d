"""A copy of a GGUF file with another chat template; everything else stays byte for byte.

The layout is that of the GGUF specification in the ggml repository (docs/gguf.md): a header, metadata
entries, tensors' lines, padding, data. Offsets of tensors count from the data, so that they stay true.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import BinaryIO

from inference.settings import load_settings
from tests.synthetic_gguf import ARRAY, STRING, entry, text

TOOL_MODEL = "smollm2-tools"
_KEY = "tokenizer.chat_template"
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_ALIGNMENT = 32

# Tools and calls as Qwen2.5 and the Hermes models write them.
HERMES = """
{%- if tools %}
    {{- '<|im_start|>system\\nYou may call these functions:\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools>\\nTo call one, answer with:\\n<tool_call>\\n' }}
    {{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.tool_calls %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def with_template(source: Path, target: Path, template: str = HERMES) -> Path:
    """Write *source* to *target* with *template* as its chat template, and return *target*."""
    with source.open("rb") as file, target.open("wb") as copy:
        magic, version, tensors, count = struct.unpack("<4sIQQ", file.read(24))
        kept = [raw for key, raw in (_entry(file) for _ in range(count)) if key != _KEY]
        lines = b"".join(_tensor_line(file) for _ in range(tensors))
        file.seek(-file.tell() % _ALIGNMENT, os.SEEK_CUR)
        copy.write(struct.pack("<4sIQQ", magic, version, tensors, len(kept) + 1))
        copy.write(b"".join(kept) + entry(_KEY, STRING, text(template)) + lines)
        copy.write(b"\0" * (-copy.tell() % _ALIGNMENT))
        shutil.copyfileobj(file, copy, 2**20)
    return target


def tool_registry(directory: Path, smollm2: Path) -> Path:
    """Write the shipped registry with one more model, SmolLM2 with that template; return its path."""
    registry = json.loads(load_settings().registry_path.read_text(encoding="utf-8"))
    weights = with_template(smollm2, directory / "tools.gguf")
    like = registry["models"]["smollm2-135m-instruct"]
    registry["models"][TOOL_MODEL] = {
        **{key: value for key, value in like.items() if key != "aliases"},
        "variants": {"q4_1": {"backend": "llamacpp", "source": {"type": "file", "path": str(weights)}}},
    }
    path = directory / "models.json"
    path.write_text(json.dumps(registry), encoding="utf-8")
    return path


def metadata(source: Path) -> dict[str, bytes]:
    """The raw entries of a file's metadata, by key."""
    with source.open("rb") as file:
        *_, count = struct.unpack("<4sIQQ", file.read(24))
        return dict(_entry(file) for _ in range(count))


def _entry(file: BinaryIO) -> tuple[str, bytes]:
    start = file.tell()
    key = _string(file)
    _skip_value(file, _number(file, "<I"))
    return key, _since(file, start)


def _tensor_line(file: BinaryIO) -> bytes:
    start = file.tell()
    _string(file)
    file.seek(8 * _number(file, "<I") + 4 + 8, os.SEEK_CUR)
    return _since(file, start)


def _skip_value(file: BinaryIO, code: int) -> None:
    if code == STRING:
        _string(file)
    elif code == ARRAY:
        inner, length = _number(file, "<I"), _number(file, "<Q")
        if inner in _SIZES:
            file.seek(_SIZES[inner] * length, os.SEEK_CUR)
        else:
            for _ in range(length):
                _skip_value(file, inner)
    else:
        file.seek(_SIZES[code], os.SEEK_CUR)


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "<Q")).decode("utf-8", "replace")


def _number(file: BinaryIO, form: str) -> int:
    (value,) = struct.unpack(form, file.read(struct.calcsize(form)))
    return int(value)


def _since(file: BinaryIO, start: int) -> bytes:
    end = file.tell()
    file.seek(start)
    return file.read(end - start)
