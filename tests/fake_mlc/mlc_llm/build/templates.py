"""Conversation templates: the names that the real one has, and of some what the engine needs."""

from __future__ import annotations

from typing import Any

_TEXT = (
    "llama-4 llama-3 llama-3_1 chatml chatml_nosystem qwen2 open_hermes_mistral neural_hermes_mistral"
    " llama_default llama-2 mistral_default ministral3 ministral3_reasoning gpt2 codellama_completion"
    " codellama_instruct redpajama_chat rwkv_world gorilla gorilla-openfunctions-v2 dolly oasst stablelm LM"
    " stablelm-3b gpt_bigcode wizardlm_7b wizard_coder_or_math glm phi-2 phi-3 phi-3-vision phi-4 stablelm-2"
    " gemma_instruction gemma3_instruction orion llava hermes2_pro_llama3 hermes3_llama-3_1 tinyllama_v1_0"
    " aya-23 deepseek deepseek_v2 deepseek_v3 deepseek_r1_qwen deepseek_r1_llama olmo olmo2 nemotron llm-jp"
    " qwen3 qwen3_5 qwen3_5_nothink"
)
NAMES = _TEXT.split()


def template(name: str) -> dict[str, Any]:
    """Return a template; the roles of those without their own here are named as in chatml."""
    own = {
        "gpt2": {"roles": {"user": "", "assistant": ""}, "stop_str": ["</s>"], "stop_token_ids": [50256]},
        # The ids of Llama 2's begin and end, whatever the model's are.
        "LM": {
            "roles": {"user": "", "assistant": ""},
            "stop_str": [],
            "stop_token_ids": [2],
            "system_prefix_token_ids": [1],
        },
    }
    chatml = {
        "roles": {"user": "<|im_start|>user", "assistant": "<|im_start|>assistant"},
        "stop_str": ["<|im_end|>"],
        "stop_token_ids": [2],
    }
    return {
        "name": name,
        "system_template": "{system_message}",
        "system_message": "",
        "system_prefix_token_ids": None,
        "role_templates": {role: f"{{{role}_message}}" for role in ("user", "assistant", "tool")},
        "messages": [],
        "seps": ["\n"],
        "role_content_sep": "\n",
        "role_empty_sep": "\n",
        **own.get(name, chatml),
    }
