"""config.json as MLC reads it: the keys where it looks for them, and none that loads anything.

MLC's readers are python/mlc_llm/model/*/*_model.py, which were written for the configurations of
transformers 4; transformers 5 moved and renamed keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from inference.artifacts.lint.checkpoint import Checkpoint

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_CODE = "auto_map"
_FILE_KEYS = ("vocab_file", "merges_file", "tokenizer_file", "name_or_path", "chat_template_file")
_LAYER_KINDS = {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"}

Tree = dict[str, Any]


def normal_config(seen: Checkpoint) -> tuple[Tree, list[str]]:
    """Return a checkpoint's configuration as MLC should get it, and what was changed."""
    config = _without(seen.config, lambda key: key == _CODE or key.startswith("_"))
    changes = []
    if config != seen.config:
        changes.append("config.json: left auto_map and the keys with a leading underscore out")
    text = config.get("text_config")
    for part, place in ((config, "config.json"), (text, "config.json: text_config")):
        if isinstance(part, dict):
            changes += [f"{place}: {what}" for what in (*_rope(part), *_dtype(part))]
    if _is_tied(seen):
        config["tie_word_embeddings"] = True
        changes.append(f"config.json: set tie_word_embeddings, because there is no {HEAD}")
    return config, changes


def normal_tokenizer_config(settings: Mapping[str, Any]) -> tuple[Tree, list[str]]:
    """Return tokenizer_config.json without what names code, files or a repository.

    gen_config opens the tokenizer with transformers, which looks for each of them.
    """
    tree = {key: value for key, value in settings.items() if key != _CODE and key not in _FILE_KEYS}
    left_out = sorted(settings.keys() - tree.keys())
    return tree, [f"tokenizer_config.json: left {', '.join(left_out)} out"] if left_out else []


def _without(tree: Mapping[str, Any], refused: Callable[[str], bool]) -> Tree:
    """Return *tree* without the keys that are refused, at any depth."""
    kept = {key: value for key, value in tree.items() if not refused(key)}
    return {
        key: _without(value, refused) if isinstance(value, dict) else value for key, value in kept.items()
    }


def _rope(part: Tree) -> list[str]:
    """Copy what transformers 5 has below rope_parameters to where it was before.

    rope_parameters stays: ministral3 reads it. LlamaConfig asserts that a rope_scaling's rope_type is
    "llama3", so that "default", which scales nothing, is left out.
    """
    changes = []
    below = part.get("rope_parameters")
    if isinstance(below, dict):
        changes += _rope_from(part, below)
    scaling = part.get("rope_scaling")
    if isinstance(scaling, dict) and scaling.get("rope_type") == "default" and "mrope_section" not in scaling:
        del part["rope_scaling"]
        changes.append("left the rope_scaling of type default out")
    return changes


def _rope_from(part: Tree, below: Tree) -> list[str]:
    wanted: Tree = {}
    for kind, key in _LAYER_KINDS.items():  # Gemma 3 has one set for each kind of layer
        if isinstance(below.get(kind), dict):
            wanted[key] = below[kind].get("rope_theta")
    if not wanted:
        wanted = {key: below.get(key) for key in ("rope_theta", "partial_rotary_factor")}
        if below.get("rope_type") not in (None, "default"):
            wanted["rope_scaling"] = {key: value for key, value in below.items() if key not in wanted}
    missing = {key: value for key, value in wanted.items() if value is not None and part.get(key) is None}
    part |= missing
    return [f"copied {', '.join(sorted(missing))} from rope_parameters to the top level"] if missing else []


def _dtype(part: Tree) -> list[str]:
    """Give dtype its old name: MLC's Qwen models take it for the type to compute in."""
    if not isinstance(part.get("dtype"), str):
        return []
    part.setdefault("torch_dtype", part["dtype"])
    del part["dtype"]
    return ["renamed dtype to torch_dtype"]


def _is_tied(seen: Checkpoint) -> bool:
    """Tell whether the embeddings are tied without a word of it: transformers writes no default value."""
    names = seen.tensor_names
    return (
        seen.config.get("tie_word_embeddings") is None
        and seen.names_are_whole
        and EMBEDDING in names
        and HEAD not in names
    )
