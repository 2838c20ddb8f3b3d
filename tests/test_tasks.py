"""What a prompt asks for."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.generation import Message
from inference.selection.tasks import Task, classify

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = Path(__file__).parent / "fixtures" / "tasks"
MATERIAL = "The poet would translate a story and write a summary of it in Python. " * 20
GUESSED = set(Task) - {Task.EMBEDDING, Task.VISION}


def read(name: str) -> list[dict[str, object]]:
    """The rows of a file of labelled prompts."""
    return [json.loads(line) for line in (PROMPTS / name).read_text(encoding="utf-8").splitlines()]


def chat(*said: str) -> tuple[Message, ...]:
    """What a user said, with an answer after each but the last."""
    answered = [m for text in said for m in (Message("user", text), Message("assistant", "All right."))]
    return tuple(answered[:-1])


def guess(row: dict[str, object], *, as_chat: bool = False) -> Task:
    """The task of a row: of its prompt, or of its messages if it has those."""
    if "messages" in row:
        return classify(tuple(Message(**message) for message in row["messages"]))  # type: ignore[attr-defined]
    return classify(chat(str(row["prompt"])) if as_chat else str(row["prompt"]))


@pytest.fixture
def train_tasks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The training script, as a module."""
    spec = importlib.util.spec_from_file_location("train_tasks", ROOT / "scripts" / "train_tasks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_tasks", module)
    spec.loader.exec_module(module)
    return module


SETS = ("held_out.jsonl", "held_out_2.jsonl")
HELD_OUT = [row for name in SETS for row in read(name)]


@pytest.mark.parametrize("as_chat", [False, True], ids=["raw", "chat"])
@pytest.mark.parametrize("name", SETS)
def test_unseen_prompts_are_recognized(name: str, as_chat: bool) -> None:
    """At least 85 % of each labelled set that no cue and no weight was made from is right."""
    rows = read(name)
    assert len(rows) >= 200
    wrong = [row for row in rows if guess(row, as_chat=as_chat).value != row["task"]]
    assert len(wrong) <= 0.15 * len(rows), Counter(row["task"] for row in wrong)


@pytest.mark.parametrize("task", sorted(GUESSED))
def test_no_task_is_overlooked(task: Task) -> None:
    """Of the unseen prompts of each task at least three quarters are right."""
    own = [row for row in HELD_OUT if row["task"] == task.value]
    assert sum(guess(row) is task for row in own) >= 0.75 * len(own)


def test_unseen_prompts_were_not_trained_on() -> None:
    """No prompt is both in the training set and in the set that judges it."""
    trained = {" ".join(str(row["prompt"]).lower().split()) for row in read("train.jsonl")}
    judged = {" ".join(str(row.get("prompt")).lower().split()) for row in HELD_OUT}
    assert not trained & judged


def test_weights_are_what_training_makes(train_tasks: ModuleType) -> None:
    """The shipped weights are those of the script; a rounding may differ by one hundredth."""
    trained = json.loads(
        train_tasks.render(train_tasks.train(train_tasks.read_examples(train_tasks.PROMPTS)))
    )
    shipped = json.loads(train_tasks.WEIGHTS.read_text(encoding="utf-8"))
    assert trained["tasks"] == shipped["tasks"]
    assert trained["bias"] == pytest.approx(shipped["bias"], abs=1)
    features = trained["weights"].keys() | shipped["weights"].keys()
    zero = [0] * len(shipped["tasks"])
    for feature in features:
        row = shipped["weights"].get(feature, zero)
        assert trained["weights"].get(feature, zero) == pytest.approx(row, abs=1), feature


@pytest.mark.parametrize(
    "prompt",
    [
        "Translate to French: The weather is nice today.",
        "Kannst du diesen Satz ins Französische übersetzen?",
        "Traduis en anglais : Je suis fatigué.",
        "Traduce al inglés: Me gusta leer libros.",
        "traduceme esto al ingles: donde esta la estacion",
        "Traduci in inglese: Dove si trova la stazione?",
        "Traduza para o inglês: O gato dorme.",
        "请翻译成英文：我喜欢喝茶",  # noqa: RUF001
        "次の文を英語に翻訳してください",
        "다음 문장을 영어로 번역해 줘: 나는 배가 고파.",
        "Переведи на английский: Я тебя люблю",
        "Vertaal naar het Engels: Ik heb honger",
        "Przetłumacz na niemiecki: Mam psa.",
        "Bunu İngilizceye çevir: Bugün hava güzel.",
        "ترجم هذه الجملة إلى الإنجليزية: أحب القهوة",
        "इस वाक्य का अंग्रेज़ी में अनुवाद करो: मुझे भूख लगी है",
        "Översätt till engelska: Jag är hungrig",
        "Přelož do angličtiny: Kde je nádraží?",
        "Переклади англійською: Добрий ранок",
        "Dịch câu này sang tiếng Anh: Tôi đói bụng",
        "Terjemahkan ke bahasa Inggris: Saya lapar",
        "แปลเป็นภาษาอังกฤษ: ฉันหิว",
    ],
)
def test_request_to_translate_is_seen_in_many_languages(prompt: str) -> None:
    """A request to translate is one in whatever language, in a chat and as a raw prompt."""
    assert classify(prompt) is Task.TRANSLATION
    assert classify(chat(prompt)) is Task.TRANSLATION


@pytest.mark.parametrize("text", ["", " ", "The sea was calm that", "In 1923 the company", "\x00\ud800" * 20])
def test_defaults(text: str) -> None:
    """Without a cue a raw prompt is text to be continued and a chat is conversation."""
    assert classify(text) is Task.TEXT_GENERATION
    assert classify(chat(text)) is Task.CONVERSATION


def test_empty_chat_is_conversation() -> None:
    """A chat in which nobody has said anything is conversation."""
    assert classify(()) is Task.CONVERSATION


def test_last_user_message_decides() -> None:
    """What was asked earlier in a chat, and what the assistant said, does not count."""
    messages = (
        Message("user", "Translate to French: good morning"),
        Message("assistant", "Bonjour"),
        Message("user", "Write a Python function that adds two numbers"),
        Message("assistant", "Here is a summary of my thoughts."),
    )
    assert classify(messages) is Task.CODE


def test_doubtful_message_belongs_to_the_task_before() -> None:
    """Where the last message says little, what was asked before it counts."""
    assert classify(chat("Translate to French: good morning", "sea")) is Task.TRANSLATION


def test_system_message_counts_where_the_user_gives_no_cue() -> None:
    """A system message that sets the task is believed, below what the user says."""
    rule = Message("system", "You are a translator. Translate everything to German.")
    assert classify((rule, Message("user", "the weather is nice"))) is Task.TRANSLATION
    assert classify((rule, Message("user", "Fix this: ```int x = 1```"))) is Task.CODE


def test_persona_sets_no_task() -> None:
    """A system message that only says who the assistant is leaves the user's task alone."""
    rule = Message("system", "You are a friendly and helpful assistant.")
    assert classify((rule, Message("user", "What is the capital of Australia?"))) is Task.QUESTION_ANSWERING


@pytest.mark.parametrize(
    ("prompt", "task"),
    [
        (f"Summarize the following text. {MATERIAL}", Task.SUMMARIZATION),
        (f"{MATERIAL}\n\nTranslate the text above to German.", Task.TRANSLATION),
        ('Translate into Italian: "Summarize this article and write a poem about it."', Task.TRANSLATION),
    ],
)
def test_pasted_material_is_not_the_instruction(prompt: str, task: Task) -> None:
    """Words in the middle of a long prompt, or quoted, belong to what it is about."""
    assert classify(prompt) is task


def test_same_prompt_same_task() -> None:
    """Classification depends on nothing but the text."""
    assert [guess(row) for row in HELD_OUT] == [guess(row) for row in HELD_OUT]


def test_task_is_a_string() -> None:
    """A task can be written to JSON and compared with a registry's use case as it is."""
    task: str = classify("Translate to French: cat")
    assert task == "translation"
    assert json.dumps(task) == '"translation"'


@given(st.text())
def test_any_text_has_a_task(text: str) -> None:
    """No text raises, and embedding and vision are never guessed."""
    assert {classify(text), classify(chat(text)), classify(chat(text, text))} <= GUESSED
