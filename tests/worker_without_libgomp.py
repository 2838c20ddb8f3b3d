"""The worker process on a machine where the dynamic linker does not find libgomp."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec

from inference.runtime.worker_main import main


class NoOpenMP(MetaPathFinder):
    """Lets the engine's package be found, and its import fail as the linker would let it fail."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Answer for the engine only; to `importlib.util.find_spec` it is there."""
        if fullname != "xllamacpp":
            return None
        return ModuleSpec(fullname, self)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Fail like dlopen."""
        raise ImportError("libgomp.so.1: cannot open shared object file: No such file or directory")

    def exec_module(self, module: object) -> None:
        """Never reached."""


sys.meta_path.insert(0, NoOpenMP())

if __name__ == "__main__":
    main(sys.argv[1:])
