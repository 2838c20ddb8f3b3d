"""Bundling: what a release takes along of this machine's models, and what a machine takes of a release.

The bundle itself, its manifest and its signature are `inference.appliance`'s: here are the store, the
registry, the evidence, and what the models answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.artifacts import files
from inference.artifacts.build import Builds
from inference.artifacts.cargo import Sum, files_of, take, weights_of
from inference.artifacts.sources import Progress
from inference.artifacts.store import Store
from inference.backends import installed_backends
from inference.errors import (
    InvalidRequestError,
    ModelNotBuiltError,
    ModelNotFoundError,
    ModelNotPulledError,
    UnsafeArtifactError,
)
from inference.generation import GenerateRequest
from inference.measurements import FILE as EVIDENCE
from inference.registry import Registry, Variant, append_evidence, load_evidence, load_registry
from inference.selection.selector import effective_variants
from inference.service import Service
from inference.settings import Settings

REGISTRY = "models.json"
"""In the state directory: the registry of the release, beside its evidence."""

PROMPT = "The capital of France is"
ANSWER_TOKENS = 16
_MLC = "mlc"
_FEWEST_TOKENS = 4


@dataclass(frozen=True)
class Chosen:
    """A variant that goes along."""

    model: str
    variant: str


@dataclass(frozen=True)
class Taken:
    """What a machine took of a release.

    Args:
        copied_bytes: of weights and builds that were not here.
        standing_bytes: of those that were.
        evidence: measurements that were new here.
        registry: whether the release's registry is another than the one before.
    """

    copied_bytes: int
    standing_bytes: int
    evidence: int
    registry: bool


class Bundling:
    """Finds in the store what a release takes along, and puts there what one brings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = Store(settings.cache_path, quota_bytes=settings.store_quota_bytes)

    def choose(self, names: list[str]) -> list[Chosen]:
        """Return the variants that are meant by ``NAME`` or ``NAME/VARIANT``; by default one that is here.

        Raises:
            ModelNotFoundError: there is no such model or variant.
            ModelNotPulledError: no variant of it is here.
        """
        registry = load_registry(self._settings.registry_path)
        return list(dict.fromkeys(self._chosen(registry, name) for name in names))

    @contextmanager
    def cargo(self, chosen: list[Chosen]) -> Iterator[dict[str, Path]]:
        """Yield the files of weights and builds by their paths below the store; meanwhile they stay.

        Raises:
            ModelNotPulledError, ModelNotBuiltError: some are not here.
            InvalidRequestError: some lie outside the store.
        """
        registry, found = load_registry(self._settings.registry_path), dict[str, Path]()
        with ExitStack() as held:
            for each in chosen:
                for path in self._places(registry, each):
                    held.enter_context(self._store.hold(path))
                found |= self._files(registry, each)
            yield found

    def take(
        self,
        directory: Path,
        sums: Mapping[str, Sum],
        *,
        registry: Path | None,
        evidence: Path | None,
        progress: Callable[[Progress], None],
    ) -> Taken:
        """Take the weights and builds of a release into the store, its registry and evidence to the state.

        A second time changes nothing; one that was killed is completed by the next.

        Args:
            directory: below it they lie at the paths of *sums*, which are paths in the store.

        Raises:
            UnsafeArtifactError: a file is not what *sums* says, or evidence or registry is none.
            InsufficientStorageError: the disk has no room.
        """
        if registry is not None:
            load_registry(registry)
        found = None if evidence is None else load_evidence(evidence)
        if found is not None and found.skipped:
            raise UnsafeArtifactError(f"the release's evidence: {found.skipped[0]}", hint="use nothing of it")
        copied, standing = take(self._store, directory, sums, progress)
        state = self._settings.state_path
        new = 0
        if found is not None:
            known = {record.sha256 for record in load_evidence(state / EVIDENCE).records}
            lacking = [record for record in found.records if record.sha256 not in known]
            for record in lacking:
                append_evidence(state / EVIDENCE, record)
            new = len(lacking)
        return Taken(copied, standing, new, registry is not None and _written(state / REGISTRY, registry))

    def _chosen(self, registry: Registry, name: str) -> Chosen:
        try:
            model, spec = registry.get(name)
            wanted = None
        except ModelNotFoundError:
            whole, slash, wanted = name.rpartition("/")
            if not slash:
                raise
            model, spec = registry.get(whole)
        variants = effective_variants(spec, container=_MLC in installed_backends())
        if wanted is not None:
            if wanted not in variants:
                raise ModelNotFoundError(
                    f"{model} has no variant {wanted!r}", hint=f"its variants: {', '.join(variants)}"
                )
            return Chosen(model, wanted)
        for each, variant in variants.items():
            if self._is_here(model, each, variant):
                return Chosen(model, each)
        raise ModelNotPulledError(f"{model}: none of its variants is here", hint=f"jetllm pull {model}")

    def _is_here(self, model: str, name: str, variant: Variant) -> bool:
        if variant.backend == _MLC:
            return bool(self._builds(model, name))
        return self._store.path_of(model, variant) is not None

    def _places(self, registry: Registry, chosen: Chosen) -> list[Path]:
        variant = self._variant(registry, chosen)
        if variant.backend == _MLC:
            return [build.path for build in self._builds(chosen.model, chosen.variant)]
        path = self._store.path_of(chosen.model, variant)
        return [] if path is None or not path.is_relative_to(self._store.root) else [path]

    def _files(self, registry: Registry, chosen: Chosen) -> dict[str, Path]:
        name, variant = f"{chosen.model}/{chosen.variant}", self._variant(registry, chosen)
        if variant.backend != _MLC:
            return weights_of(self._store, name, variant)
        builds = self._builds(chosen.model, chosen.variant)
        if not builds:
            raise ModelNotBuiltError(
                f"{name}: nothing is built of it",
                hint=f"jetllm build {chosen.model} --variant {chosen.variant}",
                details={"variant": chosen.variant},
            )
        return {path: where for build in builds for path, where in files_of(self._store, build).items()}

    def _builds(self, model: str, variant: str) -> list[Any]:
        every = Builds(self._store.root).all()
        return [build for build in every if (build.model, build.variant) == (model, variant)]

    def _variant(self, registry: Registry, chosen: Chosen) -> Variant:
        spec = registry.get(chosen.model)[1]
        return effective_variants(spec, container=_MLC in installed_backends())[chosen.variant]


def golden_answer(
    service: Service, chosen: Chosen, prompt: str = PROMPT, tokens: int = ANSWER_TOKENS
) -> dict[str, Any] | None:
    """Return what a variant answers greedily to *prompt*, given as it is; ``None`` of one that embeds.

    The text must have as many ids as it had tokens when it was made (a character may end in the middle
    of one's tokens), and must come a second time: so it is made shorter until both hold.

    Returns:
        The JSON form of `inference.appliance.manifest.Golden`.

    Raises:
        InvalidRequestError: it never answers the same twice.
        JetLLMError: it does not answer.
    """
    if service.registry.get(chosen.model)[1].embeds:
        return None
    count = tokens
    while count >= _FEWEST_TOKENS:
        text = _greedy(service, chosen, prompt, count)
        ids: list[int] = service.tokenize(chosen.model, text)["tokens"] if text else []
        if ids and _greedy(service, chosen, prompt, len(ids)) == text:
            return {
                "model": chosen.model,
                "variant": chosen.variant,
                "prompt": prompt,
                "text": text,
                "tokens": ids,
            }
        count -= 1
    raise InvalidRequestError(
        f"{chosen.model}/{chosen.variant}: no answer to {prompt!r} came twice, with as many tokens",
        hint="give another beginning: --golden-prompt TEXT",
        param="golden_prompt",
    )


def _greedy(service: Service, chosen: Chosen, prompt: str, tokens: int) -> str:
    request = GenerateRequest(
        model=chosen.model, variant=chosen.variant, prompt=prompt, max_tokens=tokens, temperature=0.0
    )
    return "".join(chunk.text for chunk in service.generate(request))


def check_beside(registry: Path, evidence: Path | None) -> None:
    """See that a registry and an evidence file are such, to the last line, before they go along.

    Raises:
        RegistryError: the registry is none.
        InvalidRequestError: a line of the evidence is none, or it is not there.
    """
    load_registry(registry)
    if evidence is None:
        return
    skipped = load_evidence(evidence).skipped
    if skipped or not evidence.is_file():
        raise InvalidRequestError(
            f"--evidence: {next(iter(skipped), f'{evidence}: expected a file')}",
            hint="name an evidence.jsonl whose every line is whole (docs/evidence.md)",
            param="evidence",
        )


def _written(path: Path, source: Path) -> bool:
    """Make *path* hold what *source* does; return whether it was otherwise."""
    data = source.read_bytes()
    if path.is_file() and path.read_bytes() == data:
        return False
    files.make_directory(path.parent)
    files.write_atomic(path, data)
    path.chmod(0o644)
    return True
