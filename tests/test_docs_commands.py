"""The appliance's documents: every command is run by a test, or says that it needs the hardware."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from inference import cli
from inference.appliance import __main__ as appliance
from tests.documents import ROOT, Block, blocks, commands_of, taken_on_host

PAGES = [
    page
    for page in ("docs/flash.md", "docs/operate.md", "docs/security.md", "docs/fleet.md", "docs/bundle.md")
    if (ROOT / page).is_file()
]
# One command by several names: the package's wrapper, the module on the host, the command line.
_OURS = {"jetllm", "inference.appliance", "inference"}
# Words that are to be found in a test: not what stands for the reader's own paths, names and numbers.
_WORD = re.compile(r"-{0,2}[a-z][a-z-]*[a-z]|-[a-z]")


def all_blocks() -> list[Block]:
    """Every shell block of these pages."""
    return [block for page in PAGES for block in blocks(page)]


def name_of(block: Block) -> str:
    """A parameter's name."""
    return f"{Path(block.page).stem}: {(block.text.splitlines() or [''])[0][:50]}"


def test_pages_have_blocks() -> None:
    """The pages are there, and their commands are found."""
    assert {"docs/operate.md", "docs/security.md", "docs/fleet.md"} <= set(PAGES)
    assert {block.page for block in all_blocks()} >= {"docs/operate.md", "docs/fleet.md"}


@pytest.mark.parametrize("page", PAGES)
def test_no_other_kind_of_block_hides_a_command(page: str) -> None:
    """A shell's block is marked "sh"; "bash", "shell" and "console" would not be looked at."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert set(re.findall(r"^```(\w*)[^\n]*\n.*?^```", text, re.MULTILINE | re.DOTALL)) <= {
        "sh",
        "text",
        "yaml",
        "json",
    }


@pytest.mark.parametrize("block", all_blocks(), ids=name_of)
def test_every_block_says_how_it_is_proven(block: Block) -> None:
    """Its first line is "sh tested: FILE::TEST" with tests that exist, or "sh needs-hardware"."""
    assert block.needs_hardware or block.tests, f"{block.page}: ```sh {block.info}"
    for test in block.tests:
        assert function_of(test) is not None, f"{block.page} names {test}, which does not exist"


@pytest.mark.parametrize("block", [each for each in all_blocks() if each.tests], ids=name_of)
def test_named_tests_run_the_commands(block: Block) -> None:
    """The words of every command are among the texts that the named tests work with."""
    known = set().union(*(words_of(test) for test in block.tests))
    for command in block.commands():
        assert missing(command, known) == set(), f"{block.tests} do not say {shlex.join(command)}"


def missing(command: list[str], known: set[str]) -> set[str]:
    """What of *command* is not in *known*."""
    program, *words = command
    program = Path(program).name
    needed = {word.partition("=")[0] for word in words}
    needed = {word for word in needed if _WORD.fullmatch(word)}
    if program in _OURS:
        return (needed - known) | (set() if known & _OURS else {program})
    return ({program, *needed}) - known


def function_of(test: str) -> ast.FunctionDef | None:
    """The function that "file::name" names."""
    file, _, name = test.partition("::")
    if not (ROOT / file).is_file():
        return None
    found = [
        node
        for node in tree_of(file).body
        if isinstance(node, ast.FunctionDef) and node.name == name.partition("[")[0]
    ]
    return found[0] if found and found[0].name.startswith("test_") else None


@cache
def tree_of(file: str) -> ast.Module:
    """A source file, parsed."""
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def words_of(test: str) -> set[str]:
    """The words in the texts of a test, and of all that it uses of its file and of tests/'s modules.

    Docstrings are no such texts. A test that reads the commands out of its document has them all.
    """
    file = test.partition("::")[0]
    function = function_of(test)
    assert function is not None
    words: set[str] = set()
    for node in used(file, function, set()):
        for text in texts_of(node):
            words |= set(re.split(r"[\s'\",;()\[\]{}|&$=]+", text))
            if re.fullmatch(r"docs/\w+\.md", text):
                words |= {word for each in blocks(text) for part in each.commands() for word in part}
    return words | {Path(word).name for word in words}


def used(file: str, node: ast.AST, seen: set[tuple[str, str]]) -> Iterator[ast.AST]:
    """Yield *node*, and what it names of its own file and of the modules of tests/ that this imports."""
    yield node
    names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    names |= {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
    names |= {each.arg for each in ast.walk(node) if isinstance(each, ast.arg)}  # fixtures
    for where in (file, *imported(file)):
        for each in tree_of(where).body:
            for name in defined(each) & names:
                if (where, name) not in seen:
                    seen.add((where, name))
                    yield from used(where, each, seen)


def defined(node: ast.stmt) -> set[str]:
    """The names that a statement at the top of a file gives."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return set()


def imported(file: str) -> list[str]:
    """The files of tests/ that a file imports, and the conftest.py that it is given."""
    found = [str(Path(file).parent / "conftest.py")]
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests"):
            base = (node.module or "").replace(".", "/")
            found += [f"{base}.py", *(f"{base}/{alias.name}.py" for alias in node.names)]
    return [each for each in dict.fromkeys(found) if (ROOT / each).is_file()]


def texts_of(node: ast.AST) -> Iterator[str]:
    """Yield the texts in *node* that are no docstrings."""
    statements = (each.value for each in ast.walk(node) if isinstance(each, ast.Expr))
    docstrings = {id(value) for value in statements if isinstance(value, ast.Constant)}
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and id(each) not in docstrings:
            yield each.value


# What the documents type is what our parsers take


def our_commands() -> list[tuple[str, list[str]]]:
    """Every `jetllm` command in the blocks, with the page it is on."""
    return [
        (block.page, command[1:])
        for block in all_blocks()
        for command in block.commands()
        if Path(command[0]).name == "jetllm"
    ]


@pytest.mark.parametrize(("page", "words"), our_commands(), ids=lambda value: str(value)[:60])
def test_commands_are_ones_that_are_taken(page: str, words: list[str]) -> None:
    """Each is parsed by the parser that would get it: the host's own, else the container's."""
    assert is_taken(words), f"{page}: jetllm {shlex.join(words)}"


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        ("jetllm keys add laptop", True),
        ("jetllm keys add", False),
        ("jetllm logs --follow", True),
        ("jetllm logs --folow", False),
        ("jetllm update FILE", True),
        ("jetllm update --fast FILE", False),
        ("jetllm rollback", True),
        ("jetllm fly", False),
        ("jetllm bundle verify DIRECTORY", True),
        ("jetllm bundle verify", False),
    ],
)
def test_check_of_commands_notices(line: str, taken: bool) -> None:
    """The check tells what is taken from what is not."""
    ((_, *words),) = commands_of(line)
    assert is_taken(words) is taken


def is_taken(words: list[str]) -> bool:
    """Whether the package's /usr/bin/jetllm, with *words*, does something."""
    return taken_on_host(words) if is_for_host(words) else in_container(words)


def is_for_host(words: list[str]) -> bool:
    """Whether the package's /usr/bin/jetllm runs this on the host; the rest goes into the container."""
    return appliance._is_ours(words)


def in_container(words: list[str]) -> bool:
    """Whether the command line takes *words*; nothing is run."""
    command: click.Command = cli.main
    context = click.Context(command, info_name="jetllm")
    while isinstance(command, click.Group):
        while words and words[0].startswith("-"):
            words = words[2:] if words[0] == "--config" else words[1:]
        if not words or words[0] not in command.commands:
            return not words and "--help" in words
        command, words = command.commands[words[0]], words[1:]
    try:
        command.make_context(command.name or "", list(words), parent=context)
    except click.exceptions.Exit:
        return True  # --help
    except click.UsageError:
        return False
    return True
