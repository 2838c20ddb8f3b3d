"""The contract: what every request may rely on, whatever the model says.

Texts are compared with the model's own other texts only, so that nonsense, too, can keep it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from phase3.asking import BROKEN, Comparison, Request, compare, each, parting, request, said
from phase3.case import Case
from phase3.checks.unicode import unicode
from phase3.checks.window import context
from phase3.data import fixed
from phase3.outcome import Outcome, at_least, at_most, failed, passed, skipped
from phase3.target import Reply

__all__ = ["context", "greedy", "length", "seed", "stop", "streaming", "unicode"]

ANSWER_TOKENS = 24
STREAMED_TOKENS = 16
"""From this length on an answer must come in several pieces."""

LENGTHS = (1, 2, 7, 32)
SEEDS = (1, 2, 3, 4, 5, 6, 7, 8)
WARM = 1.5

# A stream of which all pieces come within this share of the time that its tokens took was not one.
_BURST_SHARE = 0.2
_LEAST_DECODE_S = 0.05  # less cannot be told from the noise of a busy machine
# A text at least this likely, as a natural logarithm, may well be every seed's.
_SURE_LOGPROB = -4.0
_REPEATS = 8
_FEW_WORDS = 2
_STOP_WIDTHS = (3, 12)  # characters: within a token, and over several
_NEVER = "\N{SNOWMAN}\N{WHITE CHESS KING}never"
_UNREPEATABLE = "the same greedy request has several answers here, so that nothing can be compared"


def streaming(case: Case) -> Outcome:
    """A streamed answer is what comes whole, with the same counts, and it comes piece by piece."""
    requests = _to_stream(case)
    found = [_stream_and_whole(case, asked) for asked in each(case, requests)]
    judged = [one for one in found if one.agreement != "unsettled"]
    if not judged:
        return skipped(_UNREPEATABLE)
    different = [one for one in judged if one.agreement == "different"]
    long = [(asked, one.right) for asked, one in zip(requests, found, strict=True) if _must_flow(one.right)]
    if not different and long and all(_is_lump(case, asked, reply) for asked, reply in long):
        pieces = max(len(reply.arrivals_s) for _, reply in long)
        return failed(
            f"answers of {STREAMED_TOKENS} tokens and more come at once, in {_count(pieces, 'piece')}",
            "something on the way collects the stream: the engine, a proxy, or a buffer",
        )
    return at_least(
        len(judged) - len(different),
        len(judged),
        "answers",
        _streams_detail(found, different),
        "the stream loses or adds text or tokens: compare what the engine emits with what arrives",
    )


def greedy(case: Case) -> Outcome:
    """The same greedy request has the same answer each time; also where the prompt's cache is used.

    With and without the cache a prompt is computed in batches of other shapes, and so near ties may
    differ: answers are compared among those for which the same part of the prompt was cached.
    """
    runs = 2 if case.plan.mode == "quick" else 5
    worst = 1
    parts = []
    for text in each(case, _texts(case)[:2]):
        asked = request(case, text, max_tokens=ANSWER_TOKENS)
        plain = [case.target.generate(**asked) for _ in range(runs)]
        cached = [case.target.generate(**asked, cache_prompt=True) for _ in range(runs)]
        plain.append(case.target.generate(**asked))
        for same in _by_cached_tokens(plain, cached):
            worst = max(worst, len({said(reply) for reply in same}))
            parts += [parting(same[0].text, other.text) for other in same if said(other) != said(same[0])]
    return at_most(
        worst,
        1,
        "different texts",
        f"they part {parts[0]}" if parts else f"{runs + 1} runs without and {runs} with the prompt's cache",
        "not greedy: look for a temperature above 0, a random kernel, or a state left by the request before",
    )


def stop(case: Case) -> Outcome:
    """A stop string ends the text right before its first occurrence; one that never comes does nothing."""
    trials = list(_trials(case))
    results = [(trial, _stopped(case, trial)) for trial in each(case, trials)]
    judged = [(trial, one) for trial, one in results if one.agreement != "unsettled"]
    if not judged:
        return skipped(_UNREPEATABLE)
    wrong = [(trial, one) for trial, one in judged if one.agreement == "different"]
    return at_least(
        len(judged) - len(wrong),
        len(judged),
        "answers",
        _stop_detail(trials, wrong),
        "stop strings must be looked for in the text, not in single tokens, before anything is sent",
    )


def length(case: Case) -> Outcome:
    """``max_tokens`` is reached when the end of the turn is ignored, and never exceeded."""
    wrong, right = [], 0
    asked = request(case, _texts(case)[0])
    for most in each(case, LENGTHS):
        for exact, stream in ((True, True), (True, False), (False, True)):
            reply = case.target.generate(**asked, max_tokens=most, ignore_eos=exact, stream=stream)
            problem = _length_problem(reply, most, exact=exact)
            if problem is None:
                right += 1
            else:
                wrong.append(f"max_tokens {most}{' without the end of the turn' * exact}: {problem}")
    return at_least(
        right,
        right + len(wrong),
        "answers",
        "; ".join(wrong[:3]) or f"max_tokens {', '.join(map(str, LENGTHS))}, streamed and not",
        "max_tokens or ignore_eos does not reach the engine, or tokens are miscounted",
    )


def seed(case: Case) -> Outcome:
    """A seed repeats its text, and several seeds do not all have the same one."""
    asked = request(case, _texts(case)[-1], max_tokens=ANSWER_TOKENS, ignore_eos=True)
    once, again = (case.target.generate(**asked, temperature=1.0, seed=SEEDS[0]).text for _ in range(2))
    if once != again:
        if not _repeats(case, asked):
            return skipped(_UNREPEATABLE)
        return failed(
            f"seed {SEEDS[0]} gave two texts, which part {parting(once, again)}",
            "the seed does not reach the engine's sampler",
        )
    texts: set[str] = set()
    for number in each(case, SEEDS):
        texts.add(case.target.generate(**asked, temperature=WARM, seed=number).text)
        if len(texts) > 1:
            return passed(f"a seed repeats its text; seed {number} has another than seed {SEEDS[0]}")
    if len(set(once.split())) <= _FEW_WORDS:
        return skipped("the model says one thing over and over, whatever the seed: see coherence")
    if _is_sure(case, asked):
        return passed("a seed repeats its text; the model is so sure of it that every seed has the same one")
    return failed(
        f"{len(SEEDS)} seeds at temperature {WARM:g} gave one and the same text: {once[:40]!r}",
        "the temperature or the seed does not reach the engine's sampler",
    )


def _texts(case: Case) -> tuple[str, ...]:
    found = fixed.prompts()
    return found.chat[:4] if case.is_chat else found.base[:4]


def _to_stream(case: Case) -> list[Request]:
    few = 1 if case.plan.mode == "quick" else 3
    texts = (*_texts(case)[:few], *fixed.prompts().unicode[-1 - few :])
    ending = [request(case, text, max_tokens=ANSWER_TOKENS) for text in texts]
    return [*ending, {**ending[0], "ignore_eos": True}]


def _stream_and_whole(case: Case, asked: Request) -> Comparison:
    """Compare both; characters that only the stream has broken are judged by the Unicode check."""

    def agree(whole: Reply, streamed: Reply) -> bool:
        return said(whole) == said(streamed) or streamed.text.count(BROKEN) > whole.text.count(BROKEN)

    return compare(case, {**asked, "stream": False}, asked, agree)


def _must_flow(reply: Reply) -> bool:
    """Whether it has too many tokens for one piece; a character may take several that make no text."""
    characters = len(reply.text) - reply.text.count(BROKEN)
    return reply.completion_tokens >= STREAMED_TOKENS and 2 * characters >= reply.completion_tokens


def _is_lump(case: Case, asked: Request, reply: Reply) -> bool:
    if len(reply.arrivals_s) < 2:
        return True
    if _spread_s(reply) >= reply.total_s / 2:
        return False
    short_s = case.target.generate(**{**asked, "max_tokens": 1}).total_s
    again = case.target.generate(**asked)
    return all(_came_at_once(one, short_s) for one in (reply, again))


def _came_at_once(reply: Reply, short_s: float) -> bool:
    """Whether its pieces came together though its tokens did not, compared with an answer of one token."""
    decode_s = reply.total_s - short_s
    return decode_s > _LEAST_DECODE_S and _spread_s(reply) < _BURST_SHARE * decode_s


def _spread_s(reply: Reply) -> float:
    return reply.arrivals_s[-1] - reply.arrivals_s[0] if reply.arrivals_s else 0.0


def _streams_detail(found: list[Comparison], different: list[Comparison]) -> str:
    if different:
        one = different[0]
        if one.left.text != one.right.text:
            return f"whole and streamed part {parting(one.left.text, one.right.text)}"
        return f"whole: {_counts(one.left)}; streamed: {_counts(one.right)}"
    unsettled = sum(one.agreement == "unsettled" for one in found)
    note = f"; {unsettled} could not be compared, see greedy" if unsettled else ""
    return f"{len(found) - unsettled} answers are the same streamed and whole{note}"


def _counts(reply: Reply) -> str:
    return f"{reply.prompt_tokens} + {reply.completion_tokens} tokens, {reply.finish_reason}"


def _by_cached_tokens(plain: list[Reply], cached: list[Reply]) -> list[list[Reply]]:
    """Group the answers that were computed under the same conditions."""
    counts = {reply.cached_tokens for reply in cached}
    return [plain, *([reply for reply in cached if reply.cached_tokens == count] for count in counts)]


@dataclass(frozen=True)
class _Trial:
    """A request whose answer without *stop* is *whole*."""

    asked: Request
    whole: Reply
    stop: str

    @property
    def expected(self) -> str:
        """The text that is to come."""
        return self.whole.text.partition(self.stop)[0]

    @property
    def comes(self) -> bool:
        """Whether the stop string is in the text."""
        return self.stop in self.whole.text


def _trials(case: Case) -> Iterator[_Trial]:
    """Yield stop strings made of the model's own texts, so that they do come, and one that does not.

    Each is tried streamed and not, against the text that came in the same way.
    """
    few = 1 if case.plan.mode == "quick" else 3
    for number, known in enumerate(fixed.prompts().stop[:few]):
        for trial in _continued(case, known.prompt):
            text = trial.whole.text
            words = [word for word in known.stop if word in text]
            words += [made for width in _STOP_WIDTHS if (made := _cut_out(text, width)) is not None]
            words += [_NEVER, text[-1:] + _NEVER] if number == 0 else []
            yield from (replace(trial, stop=word) for word in words)
    for prompt in fixed.prompts().unicode[: few + 1]:
        found = [(trial, _foreign(trial.whole.text)) for trial in _continued(case, prompt)]
        if all(word for _, word in found):
            yield from (replace(trial, stop=word) for trial, word in found if word)
            return


def _continued(case: Case, prompt: str) -> list[_Trial]:
    """Ask for the text without a stop string, streamed and not."""
    asked = {"prompt": prompt, "max_tokens": ANSWER_TOKENS, "ignore_eos": True}
    ways: list[Request] = [{**asked, "stream": stream} for stream in (True, False)]
    return [_Trial(way, case.target.generate(**way), _NEVER) for way in ways]


def _cut_out(text: str, width: int) -> str | None:
    """Return *width* whole characters of the text, from its middle on, that are not its first ones."""
    starts = [*range(len(text) // 2, len(text) - width + 1), *range(1, len(text) // 2)]
    found = (text[at : at + width] for at in starts)
    return next(
        (cut for cut in found if len(cut) == width and BROKEN not in cut and text.find(cut) > 0), None
    )


def _foreign(text: str) -> str | None:
    """Return the first two characters of the text, after its first, that ASCII does not have."""
    at = next((i for i, c in enumerate(text) if i and not c.isascii() and c != BROKEN), None)
    return None if at is None else text[at : at + 2].rstrip(BROKEN)


def _stopped(case: Case, trial: _Trial) -> Comparison:
    def agree(whole: Reply, stopped: Reply) -> bool:
        if trial.comes:
            return (stopped.text, stopped.finish_reason) == (trial.expected, "stop")
        return said(stopped) == said(whole)

    asked = {**trial.asked, "stop": (trial.stop,)}
    found = compare(case, trial.asked, asked, agree, known=trial.whole)
    # Whatever else varies, a stop string is never in the text.
    return replace(found, agreement="different") if trial.stop in found.right.text else found


def _stop_detail(trials: list[_Trial], wrong: list[tuple[_Trial, Comparison]]) -> str:
    if not wrong:
        foreign = any(not trial.stop.isascii() and trial.comes for trial in trials)
        note = "" if foreign else "; no text had a character beyond ASCII to stop at"
        return f"{len(trials)} answers, streamed and whole{note}"
    trial, one = wrong[0]
    got = one.right.text
    if trial.stop in got:
        return f"stop {trial.stop!r} is in the text: {got[-60:]!r}"
    if got != trial.expected:
        return f"stop {trial.stop!r}: wanted and got part {parting(trial.expected, got)}"
    return f"stop {trial.stop!r}: {_counts(one.right)}"


def _length_problem(reply: Reply, most: int, *, exact: bool) -> str | None:
    tokens, ended = reply.completion_tokens, reply.finish_reason
    if tokens > most or (exact and tokens != most):
        return f"{_count(tokens, 'token')} came"
    if len(reply.arrivals_s) > tokens:
        return f"{_count(tokens, 'token')} in {len(reply.arrivals_s)} pieces of text"
    wanted = ("length",) if tokens == most and exact else ("length", "stop") if tokens == most else ("stop",)
    if ended not in wanted:
        return f"finish reason {ended!r} after {_count(tokens, 'token')}"
    return None


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _repeats(case: Case, asked: Request) -> bool:
    """Whether greedy answers repeat; where they do not, nothing can be said of seeds."""
    return len({said(case.target.generate(**asked)) for _ in range(_REPEATS)}) == 1


def _is_sure(case: Case, asked: Request) -> bool:
    reply = case.target.generate(**asked, logprobs=True)
    return bool(reply.logprobs) and sum(item.logprob for item in reply.logprobs or ()) > _SURE_LOGPROB
