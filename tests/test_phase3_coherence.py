"""Coherence: every layer on stored outputs of real models, healthy and broken, and on planted defects."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from phase3 import coherence
from phase3.coherence import Problem, judge, judge_all
from phase3.data import fixed

STORED: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "coherence.json").read_text("utf-8"))
HEALTHY = [pytest.param(row, id=f"{row['model']}-{row['prompt'][:20]}") for row in STORED["healthy"]]
GIBBERISH = [row["text"] for row in STORED["gibberish"]]
PROSE = fixed.text()[:600]


def layer(problem: Problem | None) -> str | None:
    """The layer that a text fails."""
    return None if problem is None else problem.layer


class TestStoredOutputs:
    """Real greedy outputs, and what the same models say when they are broken."""

    @pytest.mark.parametrize("row", HEALTHY)
    def test_healthy_answers_pass(self, row: dict[str, Any]) -> None:
        """No layer accuses what a small model says greedily, its loops of whole sentences included."""
        assert judge(row["text"], is_chat=row["chat"]) is None

    @pytest.mark.parametrize("model", ["smollm2-135m-instruct", "gemma-3-270m"])
    @pytest.mark.parametrize("is_chat", [True, False])
    def test_healthy_models_pass(self, model: str, is_chat: bool) -> None:
        """All answers of a model together pass, too."""
        rows = [row for row in STORED["healthy"] if (row["model"], row["chat"]) == (model, is_chat)]
        assert judge_all([row["text"] for row in rows], is_chat=is_chat) is None

    @pytest.mark.parametrize("text", GIBBERISH, ids=range(len(GIBBERISH)))
    def test_temperature_2_is_gibberish(self, text: str) -> None:
        """Words in an order of chance are told by the words that English cannot do without."""
        assert layer(judge(text, is_chat=False)) == "gibberish"

    @pytest.mark.parametrize("row", STORED["random"], ids=range(len(STORED["random"])))
    def test_a_random_model_cannot_spell(self, row: dict[str, Any]) -> None:
        """Bytes of chance are no UTF-8."""
        assert layer(judge(row["text"], is_chat=False)) == "encoding"


class TestPlantedDefects:
    """A healthy text with one defect fails in the layer of that defect; without it, in none."""

    @pytest.mark.parametrize("text", ["", " ", "\n\n\t"])
    def test_empty(self, text: str) -> None:
        """Space is not an answer."""
        assert judge(text, is_chat=True) == Problem("empty", "no text at all")

    @pytest.mark.parametrize(
        "spot",
        ["\N{REPLACEMENT CHARACTER}", "\ud83d", "\x00", "\x1b[0m", "ĠThe", "▁The", "<0x0A>"],
        ids=["replacement", "surrogate", "zero", "escape", "byte-level", "sentencepiece", "byte-fallback"],
    )
    def test_encoding(self, spot: str) -> None:
        """Replacement characters, lone surrogates, control characters and pieces that nobody decoded."""
        assert layer(judge(f"{PROSE} {spot} {PROSE}", is_chat=False)) == "encoding"

    @pytest.mark.parametrize(
        "token",
        [
            "<|im_end|>",
            "<|endoftext|>",
            "<|eot_id|>",
            "<end_of_turn>",
            "<start_of_turn>",
            "[INST]",
            "[/INST]",
            "<<SYS>>",
            "</s>",
            "<eos>",
            "<unused12>",
            "<\uff5cend\u2581of\u2581sentence\uff5c>",
        ],
    )
    def test_special_tokens(self, token: str) -> None:
        """A token of the usual templates in the text of any model, chat or base."""
        for is_chat in (True, False):
            problem = judge(f"{PROSE}{token}", is_chat=is_chat)
            assert problem is not None and problem.layer == "special tokens" and token in problem.detail

    def test_special_tokens_of_the_model(self) -> None:
        """Tokens that only this model has are told by its own list."""
        assert judge(f"{PROSE}<|>END", is_chat=False) is None
        assert layer(judge(f"{PROSE}<|>END", is_chat=False, specials=("<|>END",))) == "special tokens"

    def test_the_next_turn(self) -> None:
        """A chat model whose answer goes on with the next turn leaks, though no marker is left; a base model
        may write a dialogue."""
        text = f"{PROSE}\nuser\nAnd then?\nassistant\n{PROSE}"
        assert layer(judge(text, is_chat=True)) == "special tokens" and judge(text, is_chat=False) is None

    @pytest.mark.parametrize("unit", ["a", "the ", "bing bong ", "!", "ha", "\n", "の", "ab12 "])
    def test_loops(self, unit: str) -> None:
        """A character, a word or two over and over is no language."""
        expected = "repetition" if unit.strip() else "empty"
        assert layer(judge(unit * 80, is_chat=False)) == expected
        assert layer(judge(f"Well, {unit * 80}", is_chat=False)) == "repetition"

    def test_loops_that_are_not_periodic(self) -> None:
        """Two words in an order of chance have no period; the pairs of words tell them."""
        chance = random.Random(1)  # noqa: S311
        text = " ".join(chance.choice(("ab", "ba")) for _ in range(600))
        assert layer(judge(text, is_chat=False)) == "repetition"

    def test_a_good_beginning_does_not_hide_gibberish_behind_it(self) -> None:
        """Gibberish that takes over after a sentence is still told."""
        assert layer(judge(f"{PROSE[:120]} {GIBBERISH[0]}", is_chat=False)) == "gibberish"

    def test_only_english_is_told_from_gibberish(self) -> None:
        """Another language passes where English is not expected."""
        german = (
            "Der Zug fährt heute über Würzburg nach München, wo meine Schwester seit vielen Jahren wohnt,"
            " weil sie dort eine gute Arbeit gefunden hat und jeden Morgen mit dem Rad zum Fluss fahren kann,"
            " bevor die Stadt erwacht und alle Straßen voll werden."
        )
        assert judge(german, is_chat=False, english=False) is None
        assert layer(judge(german, is_chat=False)) == "gibberish"

    def test_short_answers_are_not_told_from_gibberish(self) -> None:
        """A list of few words has no common ones and is right."""
        assert judge("Jupiter, Saturn, Uranus, Neptune.", is_chat=True) is None
        assert judge("42", is_chat=True) is None


class TestTheModelAsAWhole:
    """Judging several answers at once."""

    def test_one_bad_answer_is_a_problem(self) -> None:
        """Good answers do not make up for a bad one."""
        assert layer(judge_all([PROSE, "", PROSE], is_chat=True)) == "empty"
        assert judge_all([PROSE, PROSE], is_chat=True) is None

    def test_a_chat_model_may_loop_sometimes(self) -> None:
        """Half of the answers in a loop of sentences is what small models do; more is a defect in a chat."""
        loop = "It is what it is and we go on from there. " * 12
        assert judge_all([PROSE, loop], is_chat=True) is None
        assert judge_all([PROSE, loop, loop], is_chat=True) == Problem(
            "repetition", "2 of 3 answers end in a loop"
        )
        assert judge_all([PROSE, loop, loop], is_chat=False) is None


class TestFigures:
    """The figures behind the layers, against hand-computed ones."""

    def test_distinct_2(self) -> None:
        """Different pairs over all pairs: a b, b a, a b, b c are 3 of 4."""
        assert coherence.distinct_2("a b a b c") == 0.75
        assert coherence.distinct_2("a") == coherence.distinct_2("") == 1.0

    def test_longest_repeat(self) -> None:
        """The shortest unit, how often, and the part of the text; a cut last copy counts."""
        found = coherence.longest_repeat("xyz" + "ab" * 4 + "a")
        assert (found.unit, found.copies, found.share) == ("ba", 4.5, 9 / 12)
        assert coherence.longest_repeat("abab").share == 0.0
        assert coherence.longest_repeat("").share == 0.0

    def test_words_of_a_unit(self) -> None:
        """A unit cut anywhere has the words it has on repetition; scripts without spaces, one a character."""
        assert coherence.longest_repeat("bing " * 5).words == 1
        assert coherence.longest_repeat("ng bi" * 5).words == 1
        assert coherence.longest_repeat("Boil an egg:\n\n" * 5).words == 3
        assert coherence.longest_repeat("日本" * 5).words == 2

    def test_compression(self) -> None:
        """Prose packs to about a half, a loop to nothing."""
        assert 1.4 < coherence.compression_ratio(PROSE) < 2.2 < 20 < coherence.compression_ratio("no " * 400)

    def test_common_words(self) -> None:
        """Contractions count as their first part; too few different words say nothing."""
        assert coherence.common_words_share("the cat") is None
        words = [f"z{chr(97 + i)}" for i in range(24)]
        assert coherence.common_words_share(" ".join([*words, *["It's"] * 8])) == 8 / 32

    def test_golden_prefix(self) -> None:
        """Characters in common at the start, at most those of the shorter one."""
        assert coherence.golden_prefix("abcd", "abxd") == 2
        assert coherence.golden_prefix("abcd", "ab") == coherence.golden_prefix("ab", "abcd") == 2
        assert coherence.golden_prefix("", "x") == 0

    def test_bits_per_byte(self) -> None:
        """Four tokens of probability 1/4 over four bytes are two bits a byte; ü has two bytes."""
        assert coherence.bits_per_byte([math.log(0.25)] * 4, "abcd") == pytest.approx(2.0)
        assert coherence.bits_per_byte([math.log(0.25)] * 4, "üü") == pytest.approx(2.0)
        with pytest.raises(ValueError, match="expected a text"):
            coherence.bits_per_byte([], "")

    def test_utf8(self) -> None:
        """Valid bytes and characters pass; halves of either do not."""
        assert coherence.is_utf8_clean("日本 😀") and coherence.is_utf8_clean("ü".encode())
        assert not coherence.is_utf8_clean(b"\xc3") and not coherence.is_utf8_clean("\ud83d")


class TestData:
    """The fixed inputs that are shipped."""

    def test_text_is_plain_prose(self) -> None:
        """About 3 kB of ASCII in six paragraphs, which the layers find nothing wrong with."""
        text = fixed.text()
        assert text.isascii() and 2500 < len(text) < 3500 and len(text.strip().split("\n\n")) == 6
        assert judge(text, is_chat=True) is None

    def test_prompts_are_many_and_different(self) -> None:
        """Six of each kind; no list has a prompt twice."""
        prompts = fixed.prompts()
        for kind in (prompts.chat, prompts.base, prompts.unicode):
            assert len(set(kind)) == len(kind) >= 6 and all(prompt.strip() == prompt for prompt in kind)
        assert prompts.stop and all(case.stop and case.prompt for case in prompts.stop)

    def test_unicode_prompts_have_what_breaks_tokenizers(self) -> None:
        """Characters of two, three and four bytes, ones that combine, and ones joined to one sign."""
        joined = "".join(fixed.prompts().unicode)
        assert {len(character.encode()) for character in joined} == {1, 2, 3, 4}
        assert "\u0301" in joined and "\u200d" in joined

    def test_readme_tells_of_every_file(self) -> None:
        """Each shipped file is described, with its origin and its terms."""
        folder = Path(fixed.__file__).parent
        readme = (folder / "README.md").read_text("utf-8")
        for path in folder.iterdir():
            assert path.suffix not in (".txt", ".json") or path.name in readme
        assert "CC0" in readme
