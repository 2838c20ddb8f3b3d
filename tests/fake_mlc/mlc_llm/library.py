"""A compiled library as far as anyone looks: an ELF file that the dynamic linker opens, and no code."""

from __future__ import annotations

import json
import platform
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MACHINES = {"x86_64": 62, "aarch64": 183}
LAST_WORD = b"whole"
"""The engine looks for it: without it the process dies, as of a library that was cut."""

_BEGIN = b"\nmetadata: "
_HEADER_BYTES, _PROGRAM_BYTES, _SECTION_BYTES, _PAGE_BYTES = 64, 56, 64, 0x10000
_LOAD, _DYNAMIC, _READ_WRITE = 1, 2, 6
_HASH, _STRINGS, _SYMBOLS, _STRINGS_BYTES, _SYMBOL_BYTES, _END = 4, 5, 6, 10, 11, 0


def library(metadata: Mapping[str, Any] | None = None, machine: str | None = None) -> bytes:
    """Return the file; *machine* as in ``uname -m``, this one's by default.

    All is in one segment: an empty symbol table, its hash, and *metadata* for who reads it. The section
    header stands at the end, as linkers write it, so that a file that was cut shows in its numbers.
    """
    tables_at = _HEADER_BYTES + 2 * _PROGRAM_BYTES
    tables = bytes(24) + struct.pack("<4I", 1, 1, 0, 0) + bytes(8)  # symbols, hash, strings
    dynamic_at = tables_at + len(tables)
    entries = (
        (_SYMBOLS, tables_at),
        (_HASH, tables_at + 24),
        (_STRINGS, tables_at + 40),
        (_STRINGS_BYTES, 8),
        (_SYMBOL_BYTES, 24),
        (_END, 0),
    )
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    text = _BEGIN + json.dumps(metadata or {}).encode() + b"\n" + LAST_WORD
    text += bytes(-(dynamic_at + len(dynamic) + len(text)) % 8)
    sections_at = dynamic_at + len(dynamic) + len(text)
    programs = _program(_LOAD, 0, sections_at + _SECTION_BYTES, _PAGE_BYTES)
    programs += _program(_DYNAMIC, dynamic_at, len(dynamic), 8)
    return _header(machine, sections_at) + programs + tables + dynamic + text + bytes(_SECTION_BYTES)


def metadata_of(data: bytes) -> dict[str, Any]:
    """Return the *metadata* that `library` was given."""
    found: dict[str, Any] = json.loads(data.partition(_BEGIN)[2].partition(b"\n")[0])
    return found


def scripted(path: Path) -> dict[str, Any]:
    """Return the engine's script that was compiled into the library at *path*; nothing of another file."""
    try:
        engine: dict[str, Any] = metadata_of(path.read_bytes())["engine"]
    except (ValueError, KeyError):
        return {}
    return engine


def _header(machine: str | None, sections_at: int) -> bytes:
    number = MACHINES[machine or platform.machine()]
    kind = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    sizes = (_HEADER_BYTES, _PROGRAM_BYTES, 2, _SECTION_BYTES, 1, 0)
    return struct.pack("<16sHHIQQQIHHHHHH", kind, 3, number, 1, 0, _HEADER_BYTES, sections_at, 0, *sizes)


def _program(kind: int, at: int, size: int, alignment: int) -> bytes:
    return struct.pack("<IIQQQQQQ", kind, _READ_WRITE, at, at, at, size, size, alignment)
