"""The conversation of `jetllm run`: lines read with editing and history, answers that stream."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from inference.cli.speaker import Speaker, Turn
from inference.console import print_line, print_note
from inference.errors import JetLLMError

_PROMPT, _MORE = ">>> ", "... "
_QUOTES = '"""'
_HISTORY_LINES = 1000
_HELP = {
    "/help": "this list",
    "/model NAME": "let another model answer; auto lets the selector choose",
    "/system TEXT": "tell the model TEXT before everything else; alone, nothing",
    "/clear": "forget the conversation, keep the system text",
    "/stats": "what the last answer took",
    "/exit": "end; so does Ctrl-D",
}


class Chat:
    """A conversation at a terminal with one *speaker*.

    Args:
        options: of every request.
        history: the file with the lines that were typed, readable by its owner alone.
    """

    def __init__(
        self, speaker: Speaker, options: Mapping[str, Any], system: str | None, history: Path
    ) -> None:
        self._speaker = speaker
        # A conversation outgrows every context: its oldest turns are dropped, and that is said.
        self._options = {**options, "context_overflow": "slide"}
        self._system = system
        self._history = history
        self._turns: list[Turn] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/model": self._choose,
            "/system": self._instruct,
            "/clear": self._clear,
            "/stats": self._stats,
        }

    def hold(self) -> None:
        """Converse until the user ends it."""
        print_note('/help lists the commands, """ begins a text of several lines, Ctrl-D ends')
        with _line_editing(self._history):
            while (line := self._read()) is not None:
                text = line.strip()
                if text == "/exit":
                    return
                if text.startswith("/"):
                    self._obey(text)
                elif text:
                    self._ask(text)

    def _read(self) -> str | None:
        """Return what the user typed, "" for a line that was given up; ``None`` at the end."""
        try:
            line = input(_PROMPT)
            if not line.lstrip().startswith(_QUOTES):
                return line
            lines = [line.lstrip().removeprefix(_QUOTES)]
            while not lines[-1].rstrip().endswith(_QUOTES):
                lines.append(input(_MORE))
        except KeyboardInterrupt:
            print_line()
            print_note("/exit or Ctrl-D ends the conversation")
            return ""
        except EOFError:
            print_line()
            return None
        except UnicodeDecodeError:
            print_note("that was no text in UTF-8")
            return ""
        return "\n".join(lines).rstrip().removesuffix(_QUOTES)

    def _obey(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        command = self._commands.get(name)
        if command is None:
            print_note(f"unknown command {name}; /help lists them")
            return
        try:
            command(rest.strip())
        except JetLLMError as error:
            print_note(f"error: {error}")

    def _ask(self, text: str) -> None:
        """Answer *text*; a turn that failed is forgotten, one that was stopped stays as far as it came."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        question = {"role": "user", "content": text}
        parts: list[str] = []
        answer = self._speaker.say([*system, *self._turns, question], self._options)
        try:
            for part in answer:
                parts.append(part)
                print_line(part, end="")
            print_line()
            self._say_dropped()
        except KeyboardInterrupt:
            print_line()
            print_note("stopped")
        except JetLLMError as error:
            print_line("\n" if parts else "", end="")
            print_note(f"error: {error}")
            return
        finally:
            answer.close()
        if parts:
            self._turns += [question, {"role": "assistant", "content": "".join(parts)}]

    def _say_dropped(self) -> None:
        told = self._speaker.told
        if told is not None and told.dropped_turns:
            print_note(f"the context is full: {told.dropped_turns} of the oldest turns were left out")

    def _help(self, _: str) -> None:
        for name, meaning in _HELP.items():
            print_note(f"  {name:<14} {meaning}")
        print_note('  """            begins and ends a text of several lines')

    def _choose(self, name: str) -> None:
        if not name:
            print_note(f"model: {self._options.get('model', 'auto')}; another one: /model NAME")
            return
        auto = name.partition(":")[0] == "auto"
        self._options["model"] = name if auto else self._speaker.model(name)
        self._options.pop("variant", None)
        print_note(f"model: {self._options['model']}")

    def _instruct(self, text: str) -> None:
        self._system = text or None
        print_note(f"system: {text or 'nothing'}")

    def _clear(self, _: str) -> None:
        self._turns.clear()
        print_note("forgotten")

    def _stats(self, _: str) -> None:
        told = self._speaker.told
        if told is None:
            print_note("no answer yet")
            return
        name = f"{told.model}/{told.variant}" if told.variant else told.model
        first = "" if told.ttft_s is None else f", the first text after {told.ttft_s:.2f} s"
        rate = "" if told.tokens_per_s is None else f", then {told.tokens_per_s:.1f} tokens/s"
        counts = f"{told.prompt_tokens} tokens read, {told.completion_tokens} written"
        print_note(f"{name}: {counts}{first}{rate}; it ended by {told.finish_reason}")


@contextmanager
def _line_editing(history: Path) -> Iterator[None]:
    """Edit lines as in a shell, with the history in a file of mode 0600; without one where it cannot be."""
    try:
        import readline
    except ImportError:  # a Python built without it
        yield
        return
    with suppress(OSError):
        _make_private(history)
        readline.clear_history()
        readline.read_history_file(history)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(history)
            history.chmod(0o600)


def _make_private(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    path.chmod(0o600)
