"""Golden outputs: greedy tokens of SmolLM2 in float32, written to tests/data/golden_smollm2.json.

usage: .venv-transformers/bin/python scripts/make_golden.py SmolLM2-135M-Instruct.Q4_1.gguf

It calls transformers directly, so that the backend is compared with something other than itself.
*margins* has, per token, by how much its log-probability beats the second-best: an engine whose
kernels round differently must agree up to the first small margin, and may part from there.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

MAX_TOKENS = 32
TARGET = Path(__file__).resolve().parent.parent / "tests" / "data" / "golden_smollm2.json"
QUESTIONS = (
    "What are the seven days of the week?",
    "List the four seasons of the year.",
    "What does the word café mean? ☕",
)


def main(weights: Path) -> None:
    """Generate for every question and write the file."""
    where = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    safe = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = AutoTokenizer.from_pretrained(**where, **safe)
    model = AutoModelForCausalLM.from_pretrained(**where, **safe, dtype=torch.float32)
    golden = {
        "weights": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "engine": f"transformers {transformers.__version__} (torch {torch.__version__}, float32)",
        "max_tokens": MAX_TOKENS,
        "cases": [_case(model, tokenizer, question) for question in QUESTIONS],
    }
    TARGET.write_text(json.dumps(golden, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _case(model: Any, tokenizer: Any, question: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")
    output = model.generate(
        **prompt,
        do_sample=False,
        max_new_tokens=MAX_TOKENS,
        return_dict_in_generate=True,
        output_scores=True,
    )
    best = [torch.log_softmax(scores[0], dim=-1).topk(2).values for scores in output.scores]
    answer = output.sequences[0, prompt["input_ids"].shape[1] :].tolist()
    return {
        "messages": messages,
        "rendered": rendered,
        "prompt_token_ids": prompt["input_ids"][0].tolist(),
        "token_ids": answer,
        "margins": [round(float(first - second), 3) for first, second in best],
        "text": tokenizer.decode(answer, skip_special_tokens=True),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
