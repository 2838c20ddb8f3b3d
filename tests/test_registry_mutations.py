"""Five hundred damaged registries: each one loads whole or is refused line by line, never anything else."""

from __future__ import annotations

import copy
import json
import re
import string
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from inference.errors import RegistryError
from inference.registry import ModelSpec, Registry, load_registry
from tests.test_registry import GUIDE, SHIPPED
from tests.test_registry_schema import SCHEMA_FILE, violations

Tree = dict[str, Any]
Place = tuple[Any, Any]
"""A container and a key or an index of it."""

BASES = (SHIPPED.read_bytes(), json.dumps(GUIDE, indent=2).encode())
SCHEMA = json.loads(SCHEMA_FILE.read_bytes())
LINE = re.compile(
    r"models\.json: (not JSON: |expected an object with|(models|\$schema|[^:]+).*: (expected |unknown key))"
)
WRONG_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**63, 10**400, 0.5, -0.0, 1e308, "", "x", "none", "82M", "a" * 5000, [], {},
    [[]], [None], [1, "a"], {"a": 1}, {"": {}}, {"type": "hub"}, {"type": []}, "\ud800",
    "\x00\n\u2028", "名前",
)  # fmt: skip


def places(tree: Any) -> list[Place]:
    """Every place of a JSON tree."""
    items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, child in list(items) for place in ((tree, key), *places(child))]


def any_place(tree: Tree, random: Random) -> Place:
    """Some place, of a key where there is a choice."""
    return random.choice(places(tree) or [({"models": {}}, "models")])


def keyed_place(tree: Tree, random: Random) -> Place:
    """Some place in an object."""
    return random.choice([place for place in places(tree) if isinstance(place[0], dict)] or [({"a": 1}, "a")])


def delete(tree: Tree, random: Random) -> None:
    """Take something away."""
    parent, key = any_place(tree, random)
    del parent[key]


def mistype_key(tree: Tree, random: Random) -> None:
    """A letter of a key is lost, doubled, changed or in the wrong case."""
    parent, key = keyed_place(tree, random)
    at = random.randrange(len(key)) if key else 0
    letter = random.choice(string.ascii_letters + "_- /.\n\ud800é")
    typo = random.choice([key[:at] + key[at + 1 :], key[:at] + letter + key[at:], key.upper(), key[::-1], ""])
    parent[typo] = parent.pop(key)


def replace(tree: Tree, random: Random) -> None:
    """Something stands where something else should."""
    parent, key = any_place(tree, random)
    parent[key] = copy.deepcopy(random.choice(WRONG_VALUES))


def add(tree: Tree, random: Random) -> None:
    """A key that is known elsewhere, with any value."""
    parent, _ = keyed_place(tree, random)
    _, key = keyed_place(tree, random)
    parent[key] = copy.deepcopy(random.choice(WRONG_VALUES))


def swap(tree: Tree, random: Random) -> None:
    """Two values change places."""
    (first, a), (second, b) = any_place(tree, random), any_place(tree, random)
    first[a], second[b] = copy.deepcopy(second[b]), copy.deepcopy(first[a])


def collide(tree: Tree, random: Random) -> None:
    """An entry takes another's name as its alias, in some case."""
    entries = tree.get("models") if isinstance(tree, dict) else None
    if not isinstance(entries, dict) or not entries:
        return
    entry = random.choice(list(entries.values()))
    if isinstance(entry, dict):
        name = random.choice(list(entries))
        entry["aliases"] = [random.choice([name, name.upper(), "other"]) for _ in range(2)]


def nest(tree: Tree, random: Random) -> None:
    """A value lies far deeper than it should."""
    parent, key = any_place(tree, random)
    for _ in range(random.choice([1, 20, 40, 100])):
        parent[key] = [parent[key]] if random.random() < 0.5 else {"models": parent[key]}


def keep(data: bytes, random: Random) -> bytes:
    """Nothing happens to the text."""
    return data


def truncate(data: bytes, random: Random) -> bytes:
    """The end of the file is lost."""
    return data[: random.randrange(len(data))]


def flip(data: bytes, random: Random) -> bytes:
    """Some bytes are others."""
    flipped = bytearray(data)
    for _ in range(random.choice([1, 1, 5])):
        flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
    return bytes(flipped)


def repeat_key(data: bytes, random: Random) -> bytes:
    """An object has one of its keys twice."""
    keys = list(re.finditer(rb'"[^"\n]+": ', data))
    key = random.choice(keys) if keys else None
    return data[: key.start()] + key[0] + b"null, " + data[key.start() :] if key else data


def not_a_number(data: bytes, random: Random) -> bytes:
    """A number is none."""
    numbers = list(re.finditer(rb"\b[0-9]+\b(?=[,\s}])", data))
    number = random.choice(numbers) if numbers else None
    word = random.choice([b"NaN", b"Infinity", b"-Infinity", b"1e999", b"0x10", b"01", b"9" * 5000])
    return data[: number.start()] + word + data[number.end() :] if number else data


def mark(data: bytes, random: Random) -> bytes:
    """Another encoding, or its mark."""
    text = data.decode("utf-8", "surrogatepass")
    return random.choice([b"\xef\xbb\xbf" + data, text.encode("utf-16", "surrogatepass"), data + b"\x00"])


def wrong_text(data: bytes, random: Random) -> bytes:
    """Bytes that are no UTF-8, or an escape of half a character, inside a string."""
    at = random.choice([match.end() for match in re.finditer(rb'"', data)] or [0])
    return (
        data[:at] + random.choice([b"\xff", b"\xc0\x80", b"\\ud800", b"\xed\xa0\x80", b"\\u0000"]) + data[at:]
    )


TREE_DAMAGE: tuple[Callable[[Tree, Random], None], ...] = (
    delete, mistype_key, replace, add, swap, collide, nest,
)  # fmt: skip
TEXT_DAMAGE: tuple[Callable[[bytes, Random], bytes], ...] = (
    keep, keep, keep, truncate, flip, repeat_key, not_a_number, mark, wrong_text,
)  # fmt: skip


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, no key of which is repeated."""
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def refuse_constant(text: str) -> None:
    """No NaN and no infinity."""
    raise AssertionError(text)


def assert_whole(registry: Registry, data: bytes) -> None:
    """The registry has every model of the file, and the file is one that the shipped schema allows."""
    tree = json.loads(data, object_pairs_hook=once, parse_constant=refuse_constant)
    assert list(registry.models) == list(tree["models"])
    assert all(type(spec) is ModelSpec for spec in registry.models.values())
    assert list(violations(tree, SCHEMA, SCHEMA)) == []
    names = [*registry.models, *(a for spec in registry.models.values() for a in spec.aliases)]
    assert len({name.lower() for name in names}) == len(names)


def assert_says_what_is_wrong(error: RegistryError) -> None:
    """Every line names the file, a place and what was expected there, in characters that print."""
    assert error.hint
    for line in error.message.split("\n"):
        assert LINE.match(line), line
        assert line.isprintable(), line
        line.encode()


def damaged(base: bytes, tree_damage: list[int], text_damage: int, random: Random) -> bytes:
    """A registry after these mutations."""
    tree = json.loads(base)
    for index in tree_damage:
        TREE_DAMAGE[index](tree, random)
    data = json.dumps(tree, indent=2, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")
    return TEXT_DAMAGE[text_damage](data, random)


def test_damaged_registries_load_whole_or_are_refused(tmp_path: Path) -> None:
    """Whatever is wrong with a file: every model of it, or an error that says what; no half registry."""
    outcomes: list[bool] = []

    @settings(
        max_examples=500,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        base=st.integers(0, len(BASES) - 1),
        tree_damage=st.lists(st.integers(0, len(TREE_DAMAGE) - 1), max_size=3),
        text_damage=st.integers(0, len(TEXT_DAMAGE) - 1),
        seed=st.integers(0, 2**32),
    )
    def check(base: int, tree_damage: list[int], text_damage: int, seed: int) -> None:
        data = damaged(BASES[base], tree_damage, text_damage, Random(seed))  # noqa: S311 - no secret
        path = tmp_path / "models.json"
        path.write_bytes(data)
        try:
            registry = load_registry(path)
        except RegistryError as error:
            assert_says_what_is_wrong(error)
            outcomes.append(False)
        else:
            assert_whole(registry, data)
            outcomes.append(True)

    check()
    assert outcomes.count(False) > 300, "the mutations do damage"
    assert outcomes.count(True) > 20, "and not all of them are fatal"


@pytest.mark.parametrize("damage", [*TREE_DAMAGE, *TEXT_DAMAGE], ids=lambda damage: damage.__name__)
def test_each_kind_of_damage_is_done(damage: Callable[[Any, Random], Any]) -> None:
    """A mutation changes the registry; one that did nothing would test nothing."""
    before = BASES[1]
    for seed in range(5):
        random = Random(seed)  # noqa: S311 - no secret
        if damage in TEXT_DAMAGE:
            assert damage is keep or damage(before, random) != before
        else:
            tree = json.loads(before)
            damage(tree, random)
            assert damage is swap or tree != json.loads(before)
