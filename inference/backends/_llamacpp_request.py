"""What llama.cpp is asked: the body of a request in its own words."""

from __future__ import annotations

from typing import Any

from inference.generation import GenerateRequest, Message

_SAMPLING = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repetition_penalty": "repeat_penalty",
    "seed": "seed",
}


def body_of(request: GenerateRequest, grammar: str | None) -> dict[str, Any]:
    """Return the body for *request*; *grammar* is what its JSON schema or its own grammar became."""
    body: dict[str, Any] = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,
        "cache_prompt": request.cache_prompt,
    }
    for ours, theirs in _SAMPLING.items():
        value = getattr(request, ours)
        if value is not None:
            body[theirs] = value
    if grammar is not None:
        body["grammar"] = grammar
    if request.stop:
        body["timings_per_token"] = True  # they count the tokens of a text that ends at a stop string
    if request.logit_bias:
        body["logit_bias"] = [[token, bias] for token, bias in request.logit_bias.items()]
    if request.ignore_eos:
        body["ignore_eos"] = True
    if request.messages is not None:
        body["messages"] = [_turn(message) for message in request.messages]
        if request.tools:
            body |= {"tools": list(request.tools), "tool_choice": request.tool_choice or "auto"}
        if request.logprobs:
            # With 0 alternatives llama.cpp leaves out the token's own probability too.
            body |= {"logprobs": True, "top_logprobs": max(1, request.top_logprobs)}
    else:
        body["prompt"] = (request.prompt or "") if request.prompt_ids is None else list(request.prompt_ids)
        if request.logprobs:
            body["logprobs"] = max(1, request.top_logprobs)
    return body


def _turn(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn
