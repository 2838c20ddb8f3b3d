"""The command line: ``python -m mlc_llm gen_config|convert_weight|compile``, with the real one's options.

`build.script` says how a step is made to fail.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from .build import steps
from .build.families import MODEL_TYPES
from .build.shards import QUANTIZATIONS
from .build.source import detect_config, detect_mlc_chat_config, say
from .build.templates import NAMES


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong on stderr, and on stdout what would be right."""
        say(f"{'-' * 25} Usage {'-' * 25}")
        self.print_help()
        say(f"{'-' * 25} Error {'-' * 25}")
        sys.stderr.write(f"{message}\n")
        sys.exit(2)


def main(arguments: list[str]) -> None:
    """Run a step."""
    parser = _Parser("mlc_llm")
    parser.add_argument("subcommand", choices=list(_STEPS))
    name = parser.parse_args(arguments[:1]).subcommand
    parser = _Parser(f"mlc_llm {name}")
    add, run = _STEPS[name]
    add(parser)
    parser.add_argument("--model-type", default="auto", choices=["auto", *MODEL_TYPES])
    run(parser.parse_args(arguments[1:]))


def _gen_config(parser: argparse.ArgumentParser) -> None:
    _checkpoint(parser)
    parser.add_argument("--conv-template", required=True, choices=NAMES)
    parser.add_argument("--max-batch-size", type=int, default=128)
    parser.add_argument("--disaggregation", type=bool, default=None)
    for name in (
        "--context-window-size",
        "--sliding-window-size",
        "--prefill-chunk-size",
        "--attention-sink-size",
        "--tensor-parallel-shards",
        "--pipeline-parallel-stages",
    ):
        parser.add_argument(name, type=int, default=None)


def _convert_weight(parser: argparse.ArgumentParser) -> None:
    _checkpoint(parser)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--source", default="auto")
    parser.add_argument("--lora-adapter", default=None)
    formats = ["auto", "huggingface-torch", "huggingface-safetensor", "awq"]
    parser.add_argument("--source-format", default="auto", choices=formats)


def _checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=detect_config)
    parser.add_argument("--quantization", required=True, choices=QUANTIZATIONS)
    parser.add_argument("--output", "-o", type=_made, required=True)


def _compile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=detect_mlc_chat_config)
    parser.add_argument("--quantization", choices=QUANTIZATIONS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--host", default="auto")
    parser.add_argument("--enable-subgroups", action="store_true")
    parser.add_argument("--opt", default="O2")
    parser.add_argument("--system-lib-prefix", default="auto")
    parser.add_argument("--output", "-o", type=_writable, required=True)
    parser.add_argument("--overrides", default="")
    parser.add_argument("--debug-dump", default=None)


def _made(text: str) -> Path:
    path = Path(text)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _writable(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"Output cannot be a directory: {path}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"Directory does not exist: {path.parent}")
    return path


_STEPS = {
    "gen_config": (_gen_config, steps.gen_config),
    "convert_weight": (_convert_weight, steps.convert_weight),
    "compile": (_compile, steps.compile_library),
}

if __name__ == "__main__":
    main(sys.argv[1:])
