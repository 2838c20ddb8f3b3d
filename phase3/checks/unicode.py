"""The Unicode check: characters of every script reach the model whole, and come back whole."""

from __future__ import annotations

from phase3.asking import BROKEN, Request, compare, each, said
from phase3.case import Case
from phase3.data import fixed
from phase3.outcome import Outcome, at_most, failed, passed
from phase3.target import Reply

ANSWER_TOKENS = 24
# Of all characters beyond ASCII in answers; SmolLM2 135M and Gemma 3 270M have none in 470.
MOST_BROKEN_SHARE = 0.1
# Of an English answer: a model that writes so many bytes that are no characters is broken itself, and
# that is judged as coherence.
OWN_BROKEN_SHARE = 0.1


def unicode(case: Case) -> Outcome:
    """Prompts beyond ASCII arrive unchanged, and no character of an answer is torn, streamed or not."""
    prompts = fixed.prompts().unicode
    replies = {prompt: case.target.generate(**_asked(prompt)) for prompt in each(case, prompts)}
    problem = _invalid(replies) or _uncounted(case, replies) or _replaced(case, replies)
    if problem is not None:
        return failed(problem, "look for a wrong encoding between the client and the engine's tokenizer")
    torn = _torn_in_stream(case, replies)
    if torn is not None:
        return failed(torn, "pieces must end between characters: hold back bytes until one is whole")
    broken = sum(map(_broken, replies.values()))
    foreign = sum(not character.isascii() for reply in replies.values() for character in reply.text)
    if broken > MOST_BROKEN_SHARE * foreign and _breaks_english(case):
        return passed("prompts arrive whole; the model breaks characters in English, too: see coherence")
    return at_most(
        100 * broken / max(foreign, 1),
        100 * MOST_BROKEN_SHARE,
        "% broken",
        f"{broken} of {foreign} characters beyond ASCII are broken, in {len(prompts)} answers",
        "characters of several tokens are decoded token by token: hold back bytes until one is whole",
    )


def _asked(prompt: str, **options: object) -> Request:
    return {"prompt": prompt, "max_tokens": ANSWER_TOKENS, "ignore_eos": True, **options}


def _invalid(replies: dict[str, Reply]) -> str | None:
    for prompt, reply in replies.items():
        try:
            reply.text.encode()
        except UnicodeEncodeError as error:
            return f"the answer to {prompt!r} is no text: {error.reason}"
    return None


def _uncounted(case: Case, replies: dict[str, Reply]) -> str | None:
    """Say which prompt does not count more tokens when it is there twice."""
    for prompt, reply in replies.items():
        twice = case.target.generate(**_asked(f"{prompt} {prompt}", max_tokens=1))
        if not 0 < reply.prompt_tokens < twice.prompt_tokens:
            return f"{prompt!r} has {reply.prompt_tokens} tokens; twice, it has {twice.prompt_tokens}"
    return None


def _replaced(case: Case, replies: dict[str, Reply]) -> str | None:
    """Say if every prompt is answered as if its characters beyond ASCII were question marks."""
    seen = set()
    for prompt, reply in replies.items():
        plain = "".join(c if c.isascii() else "?" for c in prompt)
        marked = case.target.generate(**_asked(plain))
        if said(marked) != said(reply):
            return None
        seen.add(marked.text)
    if len(seen) == 1:  # a model that says the same to all prompts shows nothing
        return None
    return "each prompt is answered as the same with '?' for every character beyond ASCII"


def _torn_in_stream(case: Case, replies: dict[str, Reply]) -> str | None:
    """Say which stream has broken characters that the whole answer does not have."""
    for prompt, reply in replies.items():
        if BROKEN not in reply.text:
            continue
        found = compare(case, _asked(prompt), _asked(prompt, stream=False), _no_more_broken, known=reply)
        if found.agreement == "different":
            return f"{prompt!r}: {_broken(reply)} broken characters streamed, {_broken(found.right)} whole"
    return None


def _no_more_broken(streamed: Reply, whole: Reply) -> bool:
    return _broken(streamed) <= _broken(whole)


def _broken(reply: Reply) -> int:
    return reply.text.count(BROKEN)


def _breaks_english(case: Case) -> bool:
    replies = [case.target.generate(**_asked(prompt)) for prompt in fixed.prompts().base[:3]]
    return sum(map(_broken, replies)) > OWN_BROKEN_SHARE * sum(len(reply.text) for reply in replies)
