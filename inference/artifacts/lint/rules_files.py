"""Rules about the files: those that are there, those that are not, and those that should not be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from inference.artifacts.lint.checkpoint import BUILD_CONFIG, CACHES, CONFIG, INDEX, ONE_FILE
from inference.artifacts.lint.report import Finding, label
from inference.artifacts.lint.rule import Question, Rule, error, listed, note, shown, warning

_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt"})
_NEEDED = frozenset({CONFIG, INDEX, "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"})
_PICKLES_MLC_TAKES_FIRST = ("pytorch_model.bin.index.json", "pytorch_model.bin")
GPT2_TOKENIZERS = ("GPT2Tokenizer", "GPT2TokenizerFast")
"""The classes of which the builder can write tokenizer.json from vocab.json and merges.txt."""

_NANO_LLM = "dusty-nv/NanoLLM, nano_llm/models/mlc.py MLCModel.quantize"
_AUTO_WEIGHT = "mlc-ai/mlc-llm, python/mlc_llm/support/auto_weight.py"
_GEN_CONFIG = "mlc-ai/mlc-llm, python/mlc_llm/interface/gen_config.py"
_TOKENIZERS = "mlc-ai/mlc-llm, cpp/tokenizers/tokenizers.cc Tokenizer::FromPath"
_FORMAT = "huggingface/safetensors, README: format"
_PULL = "fetch the checkpoint again"


def directory(question: Question) -> Iterator[Finding]:
    """The checkpoint is a directory that can be looked into.

    Source: the old images' "file system issues" were dangling links and directories never created:
    NanoLLM links the model into its own tree without looking whether it is there.
    """
    problem = question.checkpoint.problem
    if problem is not None:
        yield error(
            f"{shown(question.checkpoint.name)}: cannot be read: {problem}; expected a directory",
            "name the directory that holds config.json",
            _NANO_LLM,
        )


def path(question: Question) -> Iterator[Finding]:
    """A path that ends in a slash has no last name, and NanoLLM names its build after that.

    Source: NanoLLM takes os.path.basename(model), which is empty then, so that all models share one
    directory. Later images use pathlib, which drops the slash.
    """
    given = question.checkpoint.given
    if question.build.legacy and question.checkpoint.files_read and given.endswith("/"):
        yield error(
            f"path: found a slash at the end of {shown(given[-40:])}; expected none: the build gets no name",
            "give the path without the slash",
            _NANO_LLM,
            fix="stage",
        )


def config(question: Question) -> Iterator[Finding]:
    """config.json (of a finished build mlc-chat-config.json) is there and is a JSON object.

    Source: every step of MLC begins by reading it (python/mlc_llm/support/auto_config.py); NanoLLM
    asserts that it exists.
    """
    checkpoint = question.checkpoint
    if not checkpoint.files_read or checkpoint.problem is not None:
        return
    source = "mlc-ai/mlc-llm, python/mlc_llm/support/auto_config.py"
    name = BUILD_CONFIG if checkpoint.is_build else CONFIG
    if name not in checkpoint.sizes:
        found = "found what is no file" if name in checkpoint.strange else "not found"
        yield error(f"{CONFIG}: {found}; expected the model's configuration", _PULL, source)
    elif name in checkpoint.unread:
        yield error(f"{name}: cannot be read: {checkpoint.unread[name]}", _PULL, source)
    for what in checkpoint.odd[:4]:
        yield error(f"{name}: {what}", "correct the file: readers differ in what they take", source)


def dangling_links(question: Question) -> Iterator[Finding]:
    """No link in the directory points to nothing.

    Source: the hub's cache is made of links; one that dangles was among the old images' "file system
    issues", and MLC reports it as a missing file or not at all.
    """
    links = list(question.checkpoint.dangling)
    needed = [name for name in links if name in _NEEDED or name.endswith(".safetensors")]
    if links:
        yield (error if needed else warning)(
            f"links: {listed(needed or links)}: the target is not there; expected a file",
            "fetch the checkpoint again, or copy it with its targets: cp -rL",
            _NANO_LLM,
        )


def weights(question: Question) -> Iterator[Finding]:
    """The weights are whole safetensors files, under the names that MLC looks for.

    Source: python/mlc_llm/support/auto_weight.py looks for model.safetensors.index.json, then for
    model.safetensors; the old builder took any single file, too. A header must fit its file: the
    format's specification.
    """
    checkpoint = question.checkpoint
    if not checkpoint.files_read or checkpoint.problem is not None or checkpoint.is_build:
        return
    whole = ONE_FILE in checkpoint.headers
    for name in sorted(checkpoint.unread.keys() & checkpoint.sizes.keys()):
        if name.endswith(".safetensors") or name == INDEX:
            yield error(
                f"{label(name)}: not whole: {checkpoint.unread[name]}",
                f"remove {INDEX}: {ONE_FILE} is whole" if name == INDEX and whole else _PULL,
                _FORMAT,
                fix="stage" if name == INDEX and whole else None,
            )
    found = sorted(name for name in checkpoint.sizes if name.endswith(".safetensors") and "/" not in name)
    if checkpoint.missing_shards:
        missing = listed(checkpoint.missing_shards)
        yield error(
            f"{INDEX}: names {missing}, which are not here",
            f"remove {INDEX}: {ONE_FILE} is whole" if whole else _PULL,
            _AUTO_WEIGHT,
            fix="stage" if whole else None,
        )
    elif not found:
        if not _pickles(question):
            yield error(f"weights: found none; expected {ONE_FILE} or its shards", _PULL, _AUTO_WEIGHT)
    elif INDEX not in checkpoint.sizes and ONE_FILE not in found:
        one = len(found) == 1
        if not (one and question.build.legacy):
            yield error(
                f"weights: found {listed(found)}; expected {ONE_FILE}, or {INDEX} beside the shards",
                f"name the file {ONE_FILE}" if one else "fetch the index, too",
                _AUTO_WEIGHT,
                fix="stage" if one else None,
            )


def stale_index(question: Question) -> Iterator[Finding]:
    """The index names the tensors that the files hold.

    Source: MLC writes model.safetensors.index.json into the source directory and believes the one it
    finds; a stale one ends in "The following extern parameters do not exist in the weight files".
    """
    checkpoint = question.checkpoint
    if checkpoint.weight_map is None or not checkpoint.names_are_whole or checkpoint.is_build:
        return
    held = {(name, file) for file, tensors in checkpoint.headers.items() for name in tensors}
    wrong = sorted({name for name, _ in held ^ set(checkpoint.weight_map.items())})
    if wrong:
        yield error(
            f"{INDEX}: {len(wrong)} tensors are not where it says, {listed(wrong, 2)} among them",
            f"remove {INDEX}: MLC writes it anew for a single file; else fetch it again",
            _AUTO_WEIGHT,
            fix="stage" if ONE_FILE in checkpoint.headers else None,
        )


def pickles(question: Question) -> Iterator[Finding]:
    """Pickled weights are never opened here, and MLC opens them first.

    Source: _guess_weight_format tries pytorch_model.bin before safetensors; reading a pickle can run
    code (docs.python.org, pickle).
    """
    found, checkpoint = _pickles(question), question.checkpoint
    if not found or checkpoint.is_build:
        return
    if not any(name.endswith(".safetensors") for name in checkpoint.sizes):
        yield error(
            f"weights: found only pickles, {listed(found)}; expected safetensors",
            "take a revision of the model that has model.safetensors",
            _AUTO_WEIGHT,
        )
    elif not question.build.legacy and any(name in checkpoint.sizes for name in _PICKLES_MLC_TAKES_FIRST):
        yield warning(
            f"weights: MLC would open {listed(found)} rather than the safetensors beside it",
            "give convert_weight --source-format huggingface-safetensor, or leave the pickle out",
            _AUTO_WEIGHT,
        )


def remote_code(question: Question) -> Iterator[Finding]:
    """Code that a checkpoint brings (auto_map) is never run.

    Source: transformers runs it under trust_remote_code, which NanoLLM gives for the tokenizer. MLC
    itself reads no auto_map: it has its own implementation of the model, or none.
    """
    if question.checkpoint.config.get("auto_map"):
        yield warning(
            "config.json: auto_map: found code of the checkpoint's own; expected none: it is not run",
            "compare the output with the original's: MLC builds its own model of that type",
            "huggingface/transformers, trust_remote_code; dusty-nv/NanoLLM, nano_llm/models/mlc.py",
        )


def tokenizer(question: Question) -> Iterator[Finding]:
    """There is a tokenizer that MLC's C++ reads.

    Source: Tokenizer::FromPath takes tokenizer.json, else tokenizer.model, else vocab.json with
    merges.txt and added_tokens.json, all three; gen_config.py converts tiktoken files. A
    tokenizer.json that does not begin with ``{`` is a pointer of Git LFS or half a download.
    """
    checkpoint = question.checkpoint
    if not checkpoint.files_read or checkpoint.problem is not None:
        return
    names = {name.removeprefix("params/") for name, size in checkpoint.sizes.items() if size > 0}
    if "tokenizer.json" in checkpoint.unread:
        yield error(f"tokenizer.json: {checkpoint.unread['tokenizer.json']}", _PULL, _TOKENIZERS)
    if names & {"tokenizer.json", "tokenizer.model", "tokenizer_model"}:
        return
    if any(name.endswith(".tiktoken") or name.startswith("rwkv_vocab_v") for name in names):
        return
    if {"vocab.json", "merges.txt"} <= names:
        if "added_tokens.json" not in names and not question.build.legacy:
            yield error(
                "tokenizer: found vocab.json and merges.txt; expected tokenizer.json, or added_tokens.json",
                "write tokenizer.json with transformers: AutoTokenizer, then save_pretrained",
                _TOKENIZERS,
                fix="tokenizer" if _is_gpt2_tokenizer(question) else None,
            )
        return
    yield error("tokenizer: found none; expected tokenizer.json", _PULL, _TOKENIZERS)


def _is_gpt2_tokenizer(question: Question) -> bool:
    kind = question.checkpoint.tokenizer_config.get("tokenizer_class")
    return kind in GPT2_TOKENIZERS or (kind is None and question.checkpoint.model_type == "gpt2")


def chat_template(question: Question) -> Iterator[Finding]:
    """A chat model brings its chat template; without one only text can be completed.

    Source: gen_config asks for one of MLC's conversation templates and does not read the model's own;
    chatml's brings a system prompt of MLC's, gpt2's has no roles.
    """
    checkpoint = question.checkpoint
    if not checkpoint.files_read or checkpoint.problem is not None:
        return
    unread = checkpoint.unread.get("tokenizer_config.json")
    if unread is not None:
        yield error(f"tokenizer_config.json: cannot be read: {unread}", _PULL, _GEN_CONFIG)
        return
    if checkpoint.tokenizer_config.get("chat_template"):
        return
    if not checkpoint.sizes.keys() & {"chat_template.jinja", "chat_template.json"}:
        yield note(
            "chat_template: found none in tokenizer_config.json; expected one of a chat model",
            "a base model completes text; for a chat model name one of MLC's conversation templates",
            _GEN_CONFIG,
        )


def earlier_build(question: Question) -> Iterator[Finding]:
    """What an earlier build left is a complete build, and not taken for one when it is half.

    Source: NanoLLM takes any mlc-chat-config.json that is JSON for a finished build; mlc_llm.build
    refuses a source that has one ("has already been compiled"). An engine of before 2025-09-07 reads
    ndarray-cache.json only and hangs in its constructor when a shard is missing.
    """
    checkpoint, sizes = question.checkpoint, question.checkpoint.sizes
    shards = [name for name in sizes if PurePosixPath(name).name.startswith("params_shard_")]
    known = checkpoint.model_type in (question.build.model_types or ())
    if question.build.legacy and checkpoint.is_converted and known:
        yield _not_for_nano_llm()
    if not shards and BUILD_CONFIG not in sizes and checkpoint.cache is None:
        return
    why = _why_half(question, shards)
    beside = not checkpoint.is_build and CONFIG in sizes
    if why is not None:
        yield error(
            f"earlier build: half-written: {why}",
            "remove mlc-chat-config.json, the cache file and the shards, and build again",
            _NANO_LLM,
            fix="stage" if beside else None,
        )
    elif beside and question.build.legacy and BUILD_CONFIG in sizes:
        yield error(
            f"{BUILD_CONFIG}: found in the source; expected none: KeyError 'has already been compiled'",
            "build from a directory without it",
            "mlc-ai/mlc-llm@607dc5a, mlc_llm/core.py validate_config",
            fix="stage",
        )
    elif beside:
        yield note(
            "earlier build: found a complete one beside the source",
            "keep builds in a directory of their own",
            _NANO_LLM,
        )
    elif question.build.legacy:
        yield _not_for_nano_llm()
    elif PurePosixPath(str(checkpoint.cache)).name != CACHES[0] and question.build.commit:
        yield error(
            f"earlier build: found {checkpoint.cache}; expected {CACHES[0]}: this engine knows no other name",
            f"give it a copy under the name {CACHES[0]}",
            "mlc-ai/mlc-llm@91d95f9 renamed the file, 2025-09-07",
            fix="stage",
        )


def _not_for_nano_llm() -> Finding:
    return error(
        "weights: found those that MLC converted; expected a checkpoint: NanoLLM makes its own build",
        "take the original checkpoint, of which these weights were made",
        _NANO_LLM,
    )


def _why_half(question: Question, shards: list[str]) -> str | None:
    """Say what is missing from an earlier build; ``None``: nothing."""
    checkpoint, sizes = question.checkpoint, question.checkpoint.sizes
    if checkpoint.cache is None:
        return f"found {BUILD_CONFIG if BUILD_CONFIG in sizes else shards[0]}, but no {' or '.join(CACHES)}"
    if checkpoint.records is None:
        return f"{checkpoint.cache}: {checkpoint.unread.get(checkpoint.cache, 'cannot be read')}"
    folder = checkpoint.cache.rpartition("/")[0]
    if not {BUILD_CONFIG, f"{folder}/{BUILD_CONFIG}"} & sizes.keys():
        return f"found {checkpoint.cache}, but no {BUILD_CONFIG}"
    for name, size in checkpoint.records.items():
        if sizes.get(name) != size:
            return f"{shown(name)}: found {sizes.get(name, 'no file')}, expected {size} bytes"
    return None


def _pickles(question: Question) -> list[str]:
    names = sorted(question.checkpoint.sizes)
    return [
        name
        for name in names
        if PurePosixPath(name).suffix in _PICKLES
        and not PurePosixPath(name).name.startswith(("params_shard_", "training_args"))
    ]


RULES: tuple[Rule, ...] = (
    directory,
    path,
    config,
    dangling_links,
    weights,
    stale_index,
    pickles,
    remote_code,
    tokenizer,
    chat_template,
    earlier_build,
)
