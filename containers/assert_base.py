"""The base image: that MLC with CUDA is in it, and that our packages change nothing of it.

usage: python3 assert_base.py note FILE     look at the base and write down what it has
       python3 assert_base.py check FILE    look again, with our packages on the path

A build of upstream's image can end well and have no mlc_llm; it is noticed here, not on the device.
Runs under the base's own Python and needs nothing of ours.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path

OLDEST = (3, 10)
KEPT = ("mlc_llm", "tvm", "torch", "transformers")


def main(command: str, path: str) -> None:
    """Do what the usage says; ends with a sentence where the base is of no use."""
    if sys.version_info < OLDEST:
        fail(
            f"the base image has Python {sys.version.split()[0]}, JetLLM needs {OLDEST[0]}.{OLDEST[1]}",
            "use an image for L4T 36, such as dustynv/mlc:0.20.0-r36.4.0",
        )
    assert_mlc()
    found = modules()
    if command == "note":
        Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    elif command == "check":
        compare(json.loads(Path(path).read_text(encoding="utf-8")), found)
    else:
        fail(f"unknown command {command!r}", "note FILE or check FILE")
    sys.stdout.write("".join(f"{name}: {text}\n" for name, text in found.items()))


def assert_mlc() -> None:
    """MLC imports, and its TVM was built for CUDA."""
    try:
        importlib.import_module("mlc_llm")
        tvm = importlib.import_module("tvm")
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        said = (str(error).strip().splitlines() or ["no reason given"])[0]
        missing = isinstance(error, ModuleNotFoundError)
        fail(
            f"the base image has no usable mlc_llm: {type(error).__name__}: {said}",
            "use an image of dustynv/mlc for this L4T: jetllm device names it"
            if missing
            else "the driver's libraries come with the NVIDIA runtime: build with it as Docker's default",
        )
    if not tvm.runtime.enabled("cuda"):
        fail(
            "the base image's TVM was built without CUDA: models would run on the CPU",
            "use an image of dustynv/mlc for this L4T: jetllm device names it",
        )


def modules() -> "dict[str, str]":
    """Return where each package that must stay is, and the version of everything installed there."""
    found = {name: place(name) for name in KEPT}
    where = {str(Path(text).parent.parent) for text in found.values() if text}
    kept = importlib.metadata.distributions(path=sorted(where))
    return found | dict(sorted((f"package {each.metadata['Name']}", each.version) for each in kept))


def place(name: str) -> str:
    """Return the file that *name* is imported from; nothing where the base has none."""
    spec = importlib.util.find_spec(name)
    return (spec.origin or "") if spec else ""


def compare(before: "dict[str, str]", after: "dict[str, str]") -> None:
    """End with a sentence where something of the base is another one now."""
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if changed:
        told = "; ".join(f"{name}: {before.get(name)} -> {after.get(name)}" for name in changed)
        fail(
            f"our packages changed the base image: {told}",
            "they belong below /opt/jetllm: pip install --target",
        )


def fail(problem: str, hint: str) -> None:
    """End with a message and the next thing to do."""
    sys.exit(f"image: {problem}\n    hint: {hint}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        fail("expected two arguments", "note FILE or check FILE")
    main(*sys.argv[1:])
