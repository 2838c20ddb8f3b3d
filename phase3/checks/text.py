"""The checks of what a model says: that it is language, and that turns reach it through its template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from phase3 import coherence as judging
from phase3 import sample
from phase3.case import Case
from phase3.outcome import Outcome, at_most, failed, passed, skipped
from phase3.references import Reference, reference_of
from phase3.target import Messages, Reply, TargetError

MOST_LOSS_RATIO = 1.15
# Bits per byte of the fixed text without a reference. Measured: SmolLM2-135M 1.36, Gemma 3 270M 1.29;
# SmolLM2 rounded to 3 bits 1.91, with its weights shuffled 8.9. Guessing evenly costs log2(vocabulary) for
# each token: 3.6 with the 49,152 tokens of SmolLM2.
MOST_LOSS = 2.5
# Engines part at near ties, quantizations sooner. Measured on the six questions, characters equal to SmolLM2
# in float32: 127 to 240 with llama.cpp; rounded to 4 bits in groups of 32 (1.10 of its loss)
# 28, 18, 14, 4, 0, 0; in groups of 64 (1.14, still allowed) 18, 11, 4, 0, 0, 0; to 3 bits (1.41) 4, 0, 0, 0,
# 0, 0; with shuffled weights none. Gemma 3 270M, a base model, whose texts have nearer ties: 124, 15, 10, 1,
# 1, 0 with llama.cpp at 1.001 of the loss. So one beginning has to be equal.
GOLDEN_CHARACTERS = 8
GOLDEN_ANSWERS = 1

END_TOKENS = 400
_REFUSED = frozenset({"invalid_value", "invalid_request"})


@dataclass(frozen=True)
class _Layer:
    """What one layer saw: *holds* is None where it cannot tell."""

    says: str
    holds: bool | None = True
    diagnosis: str | None = None


def coherence(case: Case) -> Outcome:
    """Judge greedy answers and the loss on the fixed text, layer by layer."""
    sample.take(case)
    reference = reference_of(case.target.model)
    layers = (*_texts(case), _golden(case.replies, reference))
    loss = _loss(case, reference)
    detail = "; ".join([*(layer.says for layer in layers), loss.detail or ""])
    broken = next((layer for layer in layers if layer.holds is False), None)
    if broken is not None:
        return failed(detail, broken.diagnosis)
    return Outcome(loss.verdict, loss.value, loss.unit, loss.limit, loss.limit_is, detail, loss.diagnosis)


def chat_template(case: Case) -> Outcome:
    """Judge by token counts and answers whether turns reach the model as its template says."""
    if not case.is_chat:
        return skipped("a base model: it has no chat template")
    parts: tuple[Callable[[Case], _Layer], ...] = (_applied, _grows, _system, _order, _ends)
    layers = []
    for done, part in enumerate(parts):
        case.progress(done / len(parts))
        layers.append(part(case))
    detail = "; ".join(layer.says for layer in layers)
    broken = next((layer for layer in layers if layer.holds is False), None)
    return passed(detail) if broken is None else failed(detail, broken.diagnosis)


# The layers of coherence.

_LOOKS_LIKE: Mapping[judging.Layer, str] = {
    "empty": "The model says nothing: look at its chat template and at the token that ends a turn.",
    "encoding": "Tokens are put together wrongly: the tokenizer does not belong to the weights, or bytes of"
    " one character are decoded one by one.",
    "special tokens": "Control tokens come out as text: the conversation template or its stop tokens are not"
    " this model's.",
    "repetition": "It looks like damaged weights, or a wrong position encoding (RoPE): compare with another"
    " quantization.",
    "gibberish": "It looks like damaged weights or a quantization that this engine computes wrongly; q4f16_ft"
    " is known for it, use q4f16_1.",
}


def _texts(case: Case) -> list[_Layer]:
    """Judge the answers; a base model may end some of them at once."""
    texts = {prompt: reply.text for prompt, reply in case.replies.items() if not _may_be_empty(case, reply)}
    silent = len(case.replies) - len(texts)
    problem = judging.judge_all(tuple(texts.values()), is_chat=case.is_chat)
    if silent > len(case.replies) / 2:
        problem = judging.Problem("empty", f"{silent} of {len(case.replies)} texts are not continued at all")
    answers = f"{len(case.replies)} greedy answers"
    if problem is None:
        kinds = "not empty, clean encoding, no special tokens, no loops, English words"
        return [_Layer(f"{answers}: {kinds}")]
    return [
        _Layer(
            f"{problem.layer}: {_where(case, texts, problem)}{problem.detail}",
            False,
            _LOOKS_LIKE[problem.layer],
        )
    ]


def _may_be_empty(case: Case, reply: Reply) -> bool:
    return not case.is_chat and reply.finish_reason == "stop" and not reply.text.strip()


def _where(case: Case, texts: Mapping[str, str], problem: judging.Problem) -> str:
    """Say which answer has the *problem*; nothing where all of them together have it."""
    found = (p for p, text in texts.items() if judging.judge(text, is_chat=case.is_chat) == problem)
    prompt = next(found, None)
    return "" if prompt is None else f"{prompt!r}: {texts[prompt][:80]!r}: "


def _golden(replies: Mapping[str, Reply], reference: Reference | None) -> _Layer:
    """Compare the beginnings of answers with the reference's."""
    common = {
        prompt: judging.golden_prefix(reply.text, reference.texts[prompt])
        for prompt, reply in replies.items()
        if reference is not None and prompt in reference.texts
    }
    if reference is None or not common:
        return _Layer("no golden texts for this model", None)
    equal = sum(
        length >= min(GOLDEN_CHARACTERS, len(reference.texts[prompt])) for prompt, length in common.items()
    )
    lengths = ", ".join(str(length) for length in sorted(common.values(), reverse=True))
    says = f"equal to the reference ({reference.engine}) for the first {lengths} characters"
    return _Layer(
        says,
        equal >= GOLDEN_ANSWERS,
        "The text is not that of these weights: look at the model's files, its template, its quantization.",
    )


def _loss(case: Case, reference: Reference | None) -> Outcome:
    """Judge the loss by the reference's where there is one, by what a random model loses otherwise."""
    bits_per_byte = case.bits_per_byte
    if bits_per_byte is None:
        return passed("this backend does not score texts, so the loss is not known")
    says = f"{bits_per_byte:.3f} bits per byte"
    if reference is not None:
        expected = reference.bits_per_byte(len(case.series[sample.LOSSES]))
        ratio = bits_per_byte / expected
        return at_most(
            ratio,
            MOST_LOSS_RATIO,
            "x reference",
            f"{says}, the reference has {expected:.3f}",
            "The quantization or the engine costs more than it may: use a larger one, or another engine.",
        )
    return at_most(
        bits_per_byte,
        MOST_LOSS,
        "bits per byte",
        f"{says}; no reference for this model",
        "The model predicts English hardly better than chance: its weights or its tokenizer are wrong.",
    )


# The parts of the chat template.

_FIRST, _ANSWER, _SECOND = "My cat is called Ada.", "That is a nice name.", "What is my cat called?"
_SHORT_RULE = "Be brief."
_LONG_RULE = "Be brief. You are a guide in a museum of old clocks and you answer in one short sentence only."
_SIMPLE = ("Say hello.", "What is the capital of France?", "What is 2 plus 2? Answer with a number.")
_ORDER_TOKENS = 12
_SAME_LOGPROB = 1e-3


def _counted(case: Case, messages: Messages) -> int:
    return case.target.generate(messages=messages, max_tokens=1).prompt_tokens


def _turns(*texts: str, system: str | None = None) -> Messages:
    """Return a conversation in which user and assistant speak by turns."""
    spoken = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [*([] if system is None else [{"role": "system", "content": system}]), *spoken]


def _applied(case: Case) -> _Layer:
    """A template adds tokens to a turn's text."""
    chat = _counted(case, _turns(_FIRST))
    raw = case.target.generate(prompt=_FIRST, max_tokens=1).prompt_tokens
    return _Layer(
        f"a turn of {raw} tokens becomes a prompt of {chat}",
        chat > raw,
        "No template is applied, the text goes to the model as it stands: look at `chat` in models.json and"
        " at the checkpoint's template.",
    )


def _grows(case: Case) -> _Layer:
    """Every turn is in the prompt."""
    turns = (_FIRST, _ANSWER, _SECOND)
    counts = [_counted(case, _turns(*turns[:n])) for n in (1, 3)]
    counts.append(_counted(case, _turns(*turns, _ANSWER, _FIRST)))
    return _Layer(
        f"1, 3 and 5 turns are {counts[0]}, {counts[1]} and {counts[2]} tokens",
        counts[0] < counts[1] < counts[2],
        "Earlier turns do not reach the model: look at the checkpoint's template.",
    )


def _system(case: Case) -> _Layer:
    """A system message is in the prompt, or refused."""
    try:
        short, long = (_counted(case, _turns(_FIRST, system=rule)) for rule in (_SHORT_RULE, _LONG_RULE))
    except TargetError as error:
        if error.code not in _REFUSED:
            raise
        return _Layer(f"system messages are refused: {error.message}")
    return _Layer(
        f"a longer system message adds {long - short} tokens",
        long > short,
        "System messages are dropped without a word: look at the checkpoint's template.",
    )


def _order(case: Case) -> _Layer:
    """The same turns in another order are another prompt, for a model that heeds its prompt at all."""
    here, there, other = (
        _said(case, turns)
        for turns in ((_FIRST, _ANSWER, _SECOND), (_SECOND, _ANSWER, _FIRST), (_SIMPLE[1],))
    )
    if _alike(here, other):
        return _Layer("the order of turns is not told by answers that are all alike", None)
    return _Layer(
        "the order of turns counts"
        if not _alike(here, there)
        else "turns in another order give the same answer",
        not _alike(here, there),
        "Turns reach the model in an order of their own: look at the checkpoint's template.",
    )


def _said(case: Case, turns: tuple[str, ...]) -> Reply:
    return case.target.generate(messages=_turns(*turns), max_tokens=_ORDER_TOKENS, logprobs=True)


def _alike(a: Reply, b: Reply) -> bool:
    if a.text != b.text:
        return False
    if not a.logprobs or not b.logprobs:
        return True
    pairs = zip(a.logprobs, b.logprobs, strict=False)
    return all(abs(x.logprob - y.logprob) < _SAME_LOGPROB for x, y in pairs)


def _ends(case: Case) -> _Layer:
    """An answer to a simple question ends by itself; texts that are no language are coherence's."""
    known = case.loaded.context_tokens if case.loaded is not None else None
    limit = END_TOKENS if known is None else min(END_TOKENS, known // 2)
    endless = 0
    for question in _SIMPLE:
        reply = case.target.generate(messages=_turns(question), max_tokens=limit)
        if reply.finish_reason == "stop":
            return _Layer(f"{question!r} is answered and ended after {reply.completion_tokens} tokens")
        endless += _is_language(reply.text)
    if not endless:
        return _Layer("whether answers end is not told by texts that are no language", None)
    return _Layer(
        f"none of {len(_SIMPLE)} short questions is answered within {limit} tokens",
        False,
        "The end of the turn is not heard: look at eos_token_id in the checkpoint's generation_config.json.",
    )


def _is_language(text: str) -> bool:
    loops = judging.longest_repeat(text).share >= judging.LOOPING_ANSWERS
    return not loops and judging.judge(text, is_chat=True) is None
