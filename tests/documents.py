"""The documents' shell blocks: what each says of how its commands are proven."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inference.appliance import __main__ as appliance

ROOT = Path(__file__).resolve().parent.parent
_FENCE = re.compile(r"^```sh\b([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_PREFIXES = {"sudo", "nice", "env", "time"}


@dataclass(frozen=True)
class Block:
    """One fenced block of *page* (its path below the root): what follows "sh", and its lines."""

    page: str
    info: str
    text: str

    @property
    def tests(self) -> list[str]:
        """The tests that run its commands, "file::function" each; none where none does."""
        kind, _, names = self.info.partition(":")
        return re.split(r",\s*|\s+", names.strip()) if kind == "tested" and names.strip() else []

    @property
    def needs_hardware(self) -> bool:
        """Whether it says that nothing but the real device can prove it."""
        return self.info == "needs-hardware"

    def commands(self) -> list[list[str]]:
        """Its commands as words, without sudo and variables before them, comments and redirections."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [command for line in lines for command in commands_of(line)]


def blocks(page: str) -> list[Block]:
    """The blocks of *page* whose language is "sh"."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(page, info.strip(), body) for info, body in _FENCE.findall(text)]


def commands_of(line: str) -> Iterator[list[str]]:
    """Yield the commands of one line: the parts between |, ||, && and ;."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    command: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if word and set(word) <= set(";&|"):
            if command:
                yield command
            command = []
        elif word and set(word) <= set("<>"):
            skip = True
        elif skip:
            skip = False
        elif command or not (word in _PREFIXES or re.fullmatch(r"[A-Z_]+=.*", word)):
            command.append(word)


def taken_on_host(words: list[str]) -> bool:
    """Whether the parser of an appliance's host takes *words*; nothing is run."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            appliance._parser().parse_args(words)
        except SystemExit as end:
            return end.code == 0
    return True
