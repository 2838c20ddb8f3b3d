"""The documentation: what it shows runs, what it names exists, and what has no place in it is absent."""

from __future__ import annotations

import ast
import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest
from click.testing import CliRunner

from inference import cli
from inference.runtime.entry import State
from tests.conftest import wait_until
from tests.daemon_process import DaemonProcess
from tests.documents import taken_on_host
from tests.test_architecture import ROWS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODEL = "smollm2-135m-instruct"
ANSWER_S = 120

MARKETING = (
    "blazing|lightning|seamless|powerful|cutting[- ]edge|state[- ]of[- ]the[- ]art|robust|effortless|simply"
    "|world[- ]class|next[- ]gen|revolution|unleash|supercharge|production[- ]ready|enterprise|innovative"
    "|best[- ]in[- ]class|game[- ]chang|delightful|elegant|leverag|user[- ]friendly|high[- ]performance"
)
MACHINE_PATHS = (
    r"/(?:home|Users)/[a-z]\w*/|/root/\.(?!cache)|/(?:work|opt)/(?!jetllm\b|mlc-llm\b)[a-z]|/tmp/[a-z]/"
)
REGISTRY_HOSTS = (
    r"\b(?:pypi|pythonhosted|anaconda|npmjs)\.(?:org|com)"
    r"|https?://(?!127\.|[^\s/]+\.(?:example|invalid)/)[^\s`'\"]+/simple\b"  # but not what can be nobody's
)


def pages() -> list[Path]:
    """Every page of ours, without what lies in environments and caches."""
    found = [path for path in ROOT.rglob("*.md") if not _hidden(path)]
    assert ROOT / "README.md" in found
    return found


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") and part != ".ci" for part in path.relative_to(ROOT).parts)


def fences(language: str) -> list[str]:
    """The README's blocks in *language*, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[str]:
    """Yield the lines of *page*'s code: those of fenced and indented blocks, and spans in the text."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```[^\n]*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).splitlines() + re.findall(r"^ {4}(.*)$", prose, re.MULTILINE)
    yield from (line.strip().removeprefix("$ ") for line in lines)
    yield from re.findall(r"`([^`\n]+)`", prose)


# What the README shows, run as it stands


@pytest.fixture(scope="module")
def daemon(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """A daemon with SmolLM2 loaded, as `make serve` leaves it."""
    options = {"cache_dir": smollm2_path.parents[1], "offline": True}
    with DaemonProcess(tmp_path_factory.mktemp("state"), "--preload", MODEL, **options) as started:
        wait_until(lambda: started.ask("GET", "/readyz")[0] == 200, "readiness")
        yield started


def run(daemon: DaemonProcess, *command: str) -> str:
    """Run *command* beside the daemon, on its port; return what it prints."""
    environment = {
        **os.environ,
        "JETLLM_STATE_DIR": str(daemon._state_dir),
        "JETLLM_CACHE_DIR": daemon._environment["JETLLM_CACHE_DIR"],
        "PYTHONPATH": str(ROOT),
    }
    arguments = [part.replace("127.0.0.1:8080", f"127.0.0.1:{daemon.port}") for part in command]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=ANSWER_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shell(daemon: DaemonProcess, script: str) -> str:
    """Run a block of the README in a shell in which `jetllm` is this checkout's."""
    function = f'jetllm() {{ {shlex.quote(sys.executable)} -m inference "$@"; }}'
    return run(daemon, "bash", "-euc", f"{function}\n{script}")


def post_without_curl(daemon: DaemonProcess, command: str) -> str:
    """Send what a curl *command* would send."""
    words = shlex.split(command)
    headers = dict(words[at + 1].split(": ", 1) for at, word in enumerate(words) if word == "-H")
    path = urlsplit(next(word for word in words if word.startswith("http://"))).path
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=ANSWER_S)
    try:
        connection.request("POST", path, words[words.index("-d") + 1], headers)
        response = connection.getresponse()
        return f"{response.headers}\n\n{response.read().decode()}"
    finally:
        connection.close()


def test_four_ways_of_the_readme_give_the_same_answer(daemon: DaemonProcess) -> None:
    """curl, the openai package, the command line and InferenceEngine run as written and agree."""
    by_curl, by_command = example("curl"), example("jetllm run")
    by_openai, by_engine = fences("python")
    answered = shell(daemon, by_curl) if shutil.which("curl") else post_without_curl(daemon, by_curl)
    assert f"x-jetllm-selection: {MODEL}/" in answered.lower()
    body = json.loads(answered[answered.index("{") :])
    answers = [
        body["choices"][0]["message"]["content"],
        run(daemon, sys.executable, "-c", by_openai),
        shell(daemon, by_command),
        run(daemon, sys.executable, "-c", by_engine),
    ]
    assert all(len(answer.split()) > 20 for answer in answers)
    # Only the beginning: a prefix from the cache is computed in other batches, with other roundings.
    assert len({" ".join(answer.split()[:5]) for answer in answers}) == 1, answers


def test_curl_example_needs_no_curl(daemon: DaemonProcess) -> None:
    """The curl example is a plain request, that any client can send."""
    answered = post_without_curl(daemon, example("curl"))
    assert json.loads(answered[answered.index("{") :])["usage"]["completion_tokens"] > 20


def test_lists_of_the_readme_have_the_columns_shown(daemon: DaemonProcess) -> None:
    """`jetllm ps` and `jetllm models` print the headers and the models that the README shows."""
    printed = shell(daemon, example("jetllm ps"))
    shown = next(block for block in fences("text") if block.startswith("MODEL"))
    for start in ("MODEL", MODEL):
        lines = [line.split() for line in shown.splitlines() if line.startswith(start)]
        assert len(lines) == 2
    headers = [line.split() for line in printed.splitlines() if line.startswith("MODEL")]
    assert headers == [line.split() for line in shown.splitlines() if line.startswith("MODEL")]
    for name, parameters, status in (line.split()[:3] for line in shown.splitlines()[3:]):
        assert [name, parameters, status] in [line.split()[:3] for line in printed.splitlines()]


def test_explanation_of_the_readme_is_what_is_printed() -> None:
    """The lines shown of `jetllm select` are among those that it prints; a name may be cut."""
    command = example("jetllm select").strip().split()[1:]
    result = CliRunner().invoke(cli.main, command)
    assert result.exit_code == 0
    printed = [" ".join(line.split()) for line in result.stdout.splitlines()]
    shown = next(block for block in fences("text") if "CANDIDATE" in block).splitlines()
    assert len(shown) > 5
    for line in filter(None, (" ".join(line.split()) for line in shown)):
        start, _, rest = line.partition("...")
        assert any(found.startswith(start) and found.endswith(rest) for found in printed), line


def example(start: str) -> str:
    """The README's shell block that begins so."""
    return next(block for block in fences("sh") if block.startswith(start))


# What is named exists


def test_links_lead_somewhere() -> None:
    """A relative link of any page names a file, and its fragment a heading there."""
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages()
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        if not target.startswith(("http://", "https://")) and not leads_somewhere(page, target)
    ]
    assert dead == []


def leads_somewhere(page: Path, target: str) -> bool:
    path, _, fragment = target.partition("#")
    file = (page.parent / path) if path else page
    if not file.exists():
        return False
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE) if fragment else []
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    return not fragment or fragment in anchors


def test_make_targets_exist() -> None:
    """Every `make TARGET` in the documentation is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.MULTILINE))
    named = {match[1] for page in pages() for line in commands(page) if (match := _MAKE.match(line))}
    assert named >= {"serve", "test"}
    assert named - targets == set()


_MAKE = re.compile(r"make ([a-z][a-z0-9-]*)")


def test_jetllm_commands_and_flags_exist() -> None:
    """Every `jetllm COMMAND --flag` in the documentation is one that the command line knows."""
    unknown = {line for page in pages() for line in commands(page) if not is_known(line)}
    assert unknown == set()


def is_known(line: str) -> bool:
    """Whether *line*, when it is a `jetllm` command, could be run."""
    found = re.search(r"(?:^|[;&|] |[A-Z]=\S+ )jetllm(?: --config \S+)? ([a-z]\w*)(.*)", line)
    if found is None:
        return True
    command = cli.main.commands.get(found[1])
    if command is None:
        return taken_on_host([found[1], *found[2].split()])
    if "ignore_unknown_options" in command.context_settings:
        return True  # `check` parses its own
    if isinstance(command, click.Group):
        command = command.commands.get(next(iter(found[2].split()), ""), command)
    options = [param for param in command.params if isinstance(param, click.Option)]
    known = {"--help", *(flag for option in options for flag in (*option.opts, *option.secondary_opts))}
    return set(re.findall(r"(?<!\S)--[a-z-]+", found[2])) <= known


@pytest.mark.parametrize(
    ("line", "known"),
    [
        ("jetllm run 'hi' --seed 1", True),
        ("JETLLM_PORT=1 jetllm --config x.yaml serve --no-offline", True),
        ("jetllm fly", False),
        ("jetllm firstboot --key", True),
        ("jetllm firstboot --keys", False),
        ("jetllm run 'hi' --seeds 1", False),
        ("jetllm bundle verify x.tar --trusted x.pub", True),
        ("jetllm bundle verify x.tar --image x", False),
        ("JETLLM_PORT=1 jetllm --config x.yaml fly", False),
        ("jetllm 0.1.0 listens on http://127.0.0.1:8080", True),
    ],
)
def test_command_check_notices(line: str, known: bool) -> None:
    """The check of commands tells a command from what is none."""
    assert is_known(line) is known


def test_readme_names_every_command() -> None:
    """Whoever reads the README has heard of every command, and `commands` has found them."""
    named = {line.removeprefix("jetllm ").split()[0] for line in commands(ROOT / "README.md") if line.strip()}
    assert cli.main.commands.keys() - named == set()


def test_pages_named_by_the_program_exist() -> None:
    """An error or a help text that points to a page points to one that is there."""
    named = set()
    for path in (ROOT / "inference").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        texts = [
            node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings
        ]
        named |= {page for text in texts for page in re.findall(r"docs/[\w/-]+\.md", str(text.value))}
    assert named >= {"docs/settings.md", "docs/api.md"}
    assert [page for page in sorted(named) if not (ROOT / page).is_file()] == []


# docs/architecture.md is true to the code


def section(title: str) -> str:
    """The part of docs/architecture.md under the heading *title*."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def first_cells(title: str) -> list[str]:
    """The first cells of the table in that section, without its head."""
    return re.findall(r"^\| (.+?) \|", section(title), re.MULTILINE)[2:]


def test_rows_are_those_of_the_architecture_test() -> None:
    """The documented rows name the units of the enforced ones, in their order."""
    documented = [name for cell in first_cells("Rows") for name in re.findall(r"`([\w.]+)`", cell)]
    hidden = {"__main__", "runtime.__init__"}
    enforced = [set(row) - hidden for row in ROWS]
    for row in (row for row in enforced if row):
        taken, documented = set(documented[: len(row)]), documented[len(row) :]
        assert taken == row
    assert documented == []


def test_states_are_the_codes() -> None:
    """The table of states has every state, in the order in which the code looks for them."""
    assert set(first_cells("States")) == {state.value for state in State}


# What has no place in it


def test_no_page_advertises() -> None:
    """The documentation says what there is and leaves the judgement to its reader."""
    found = [
        f"{page.relative_to(ROOT)}: {match[0]}"
        for page in pages()
        for match in re.finditer(rf"\b(?:{MARKETING})\w*", page.read_text(encoding="utf-8"), re.IGNORECASE)
    ]
    assert found == []


@pytest.mark.parametrize("pattern", [MACHINE_PATHS, REGISTRY_HOSTS], ids=["machine path", "registry host"])
def test_no_file_names_this_machine_or_a_registry(pattern: str) -> None:
    """A committed file holds no path of the machine it was written on and no host of a package index."""
    found = [f"{path}: {match[0]}" for path, text in committed() for match in re.finditer(pattern, text)]
    assert found == []


def committed() -> Iterator[tuple[str, str]]:
    """Yield the text files that git has or would take."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        data = path.read_bytes() if path.is_file() else b"\0"
        if b"\0" not in data:
            yield name, data.decode("utf-8", errors="replace")
