"""Rules about the quantization: its name, what it is made from, and its groups."""

from __future__ import annotations

from collections.abc import Iterator

from inference.artifacts.lint.report import Finding
from inference.artifacts.lint.rule import Question, Rule, error, listed, note, shown, warning

AWQ_GROUP = 128
_GROUPS = (("q3", 40), ("q4", 32), ("q8", 32))
_GIVEN_GROUPS = frozenset({"q4f16_autoawq", "autogptq_llama_q4f16_0", "autogptq_llama_q4f16_1"})
_FROM_QUANTIZED = _GIVEN_GROUPS | {"fp8_e4m3fn_bf16_block_scale"}
_BY_MLC_CHAT = frozenset({"phi", "gemma"})  # of nano_llm:r36.2.0; that tool's names were not looked up


def quantization(question: Question) -> Iterator[Finding]:
    """The quantization is one that the build knows; a finished build has the one that is asked for.

    Source: QUANTIZATION in python/mlc_llm/quantization/quantization.py at the image's commit.
    """
    checkpoint, build, wanted = question.checkpoint, question.build, question.quantization
    known = build.quantizations
    by_mlc_chat = build.legacy and checkpoint.model_type in _BY_MLC_CHAT
    if known is not None and wanted not in known and not by_mlc_chat:
        yield error(
            f"quantization: found {shown(wanted)}; expected one of {build.image}'s:"
            f" {listed(sorted(known), 99)}",
            "choose one of them; q4f16_1 is MLC's usual one",
            build.source("quantizations"),
        )
    made = checkpoint.text("quantization") if checkpoint.is_build else None
    if made is not None and made != wanted:
        yield error(
            f"quantization: found a build in {shown(made)}; expected {shown(wanted)}",
            "ask for the one that it has, or build from the original checkpoint",
            "mlc-chat-config.json, key quantization",
        )
    if wanted.endswith("_ft") and checkpoint.model_type == "qwen3":
        yield warning(
            f"quantization: found {wanted} for qwen3; expected q4f16_1: gibberish was seen of Qwen3-0.6B",
            "judge its output before use, or take q4f16_1",
            "reports to mlc-ai/mlc-llm; not measured here",
        )


def quantized_source(question: Question) -> Iterator[Finding]:
    """MLC quantizes weights in full precision, unless the format is that of weights quantized before.

    Source: loaders map names such as ...q_proj.weight; checkpoints of AutoAWQ and AutoGPTQ have qweight,
    scales and qzeros in their place, which only the awq and gptq formats look for.
    """
    checkpoint, wanted = question.checkpoint, question.quantization
    if checkpoint.is_build or not checkpoint.files_read or not checkpoint.config:
        return
    source = "mlc-ai/mlc-llm, python/mlc_llm/quantization/awq_quantization.py and loader/utils.py"
    method = checkpoint.part("quantization_config").get("quant_method")
    is_quantized = bool(checkpoint.part("quantization_config"))
    if is_quantized and wanted not in _FROM_QUANTIZED:
        yield error(
            f"quantization_config: found weights quantized by {shown(method)}; expected full precision"
            f" for {wanted}",
            "take the original checkpoint, of which this one was made",
            source,
        )
    elif wanted in _FROM_QUANTIZED and not is_quantized:
        yield error(
            f"quantization_config: found none; expected weights quantized before, for {wanted}",
            "take q4f16_1, or a checkpoint in that format",
            source,
        )


def group_size(question: Question) -> Iterator[Finding]:
    """The groups of the format divide the widths of the model's matrices.

    Source: GroupQuantize takes ceildiv, so that a last group that is not full is padded; AWQQuantize
    takes ``in_features // group_size``, so that a width that 128 does not divide has no place for its
    last group (SmolLM2's 576). FTQuantize of a whole row has no groups.
    """
    checkpoint, wanted = question.checkpoint, question.quantization
    group = group_of(wanted)
    if group is None or checkpoint.is_build:
        return
    widths = {
        "hidden_size": checkpoint.count("hidden_size"),
        "intermediate_size": checkpoint.count("intermediate_size"),
    }
    uneven = [f"{key}: found {width}" for key, width in widths.items() if width and width % group]
    if not uneven:
        return
    if wanted in _GIVEN_GROUPS:
        yield error(
            f"group size: {', '.join(uneven)}; expected multiples of {group} for {wanted}",
            "take q4f16_1, whose groups are of 32",
            "mlc-ai/mlc-llm, python/mlc_llm/quantization/awq_quantization.py",
        )
    else:
        yield note(
            f"group size: {', '.join(uneven)}; expected multiples of {group}: the last group is padded",
            "nothing needs to be done: it costs a few bytes a row",
            "mlc-ai/mlc-llm, python/mlc_llm/quantization/group_quantization.py ceildiv",
        )


def group_of(quantization: str) -> int | None:
    """Return how many weights share a scale; ``None``: a format without groups, or an unknown one."""
    if quantization in _GIVEN_GROUPS:
        return AWQ_GROUP
    if quantization.endswith("_ft_group"):
        return 64
    if quantization.endswith("_ft"):
        return None
    return next((group for begin, group in _GROUPS if quantization.startswith(begin)), None)


RULES: tuple[Rule, ...] = (quantization, quantized_source, group_size)
