"""`inference.backends._mlc_template`: the chat template of a checkpoint, a stranger's program."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path

import pytest

from inference.backends._mlc_template import ChatTemplate, find_template
from inference.errors import InvalidRequestError
from inference.generation import Message
from tests.mlc_model import CHAT_TEMPLATE

MOST_BYTES = 300_000_000  # text that doubles itself is noticed at 200 MB; the bombs are of 900 MB and more
TURNS = (Message("system", "Be kind."), Message("user", "hi"))


def rendered(source: str, **names: str) -> str:
    return ChatTemplate(source, names).render(TURNS)


def test_it_renders_as_transformers_does() -> None:
    """Blocks are trimmed, the assistant's turn is begun, and the special tokens have names."""
    assert rendered("{{ bos_token }}" + CHAT_TEMPLATE, bos_token="<s>") == (  # noqa: S106
        "<s><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_what_templates_use_is_there() -> None:
    """JSON without escapes, loop controls, the date, and a way to refuse."""
    assert rendered("{{ {'a': 'é<'} | tojson }}") == '{"a": "é<"}'
    assert rendered("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}") == "system"
    assert rendered("{{ strftime_now('%Y') }}").isdigit()
    with pytest.raises(InvalidRequestError, match="refuses them: only one turn"):
        rendered("{{ raise_exception('only one turn') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
        "{{ 9 ** 9 }}",
        "{{ 'a' * 900000000 }}",
        "{{ 900000000 * ['a'] }}",
        "{{ range(100000000) | list }}",
        "{{ 'a' | center(900000000) }}",
        "{{ 'a'.ljust(900000000) }}",
        "{{ '{:900000000}'.format('a') }}",
        "{{ '%900000000d' % 1 }}",
        "{{ '%900000000d' | format(1) }}",
        "{{ '%*d' % (900000000, 1) }}",
        "{{ '{:{}}'.format('a', 900000000) }}",
        "{{ ('a' * 90000).replace('a', 'b' * 90000) }}",
        "{{ ('a' * 90000) | replace('a', 'b' * 90000) }}",
        "{{ ('a' * 90000).join(['b'] * 90000) }}",
        "{{ (['b'] * 90000) | join('a' * 90000) }}",
        "{% set t = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(30) %}{% set t.x = t.x ~ t.x %}"
        "{% endfor %}{{ t.x }}",
    ],
)
def test_it_reads_changes_and_takes_nothing(source: str) -> None:
    """No attribute of Python's, no file, no change of the messages, no memory for itself."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequestError, match="messages: the model's chat template refuses them"):
            rendered(source)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("source", ["{{ messages.__class__ }}", "{{ raise_exception.__globals__ }}"])
def test_what_is_not_a_templates_business_is_not_there(source: str) -> None:
    """Asked for by name, it is as if it did not exist."""
    assert rendered(source) == ""


def test_everyday_filters_and_methods_work() -> None:
    """What real templates do with a turn's text is not in the way of the limits above."""
    source = (
        "{{ messages[1].content | trim | upper | replace('H', 'J') }} {{ 'a,b'.split(',') | join('+') }} "
        "{{ '%s!' % 'x' }} {{ '{}?'.format(7) }} {{ messages | length }} {{ 'x' | indent(2, true) }}"
    )
    assert rendered(source) == "JI a+b x! 7? 2   x"


def test_it_has_a_time_limit() -> None:
    """Two loops within each other run for hours inside a sandbox."""
    started_s = time.monotonic()
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(InvalidRequestError, match=r"it takes longer than 0.2 s"):
        ChatTemplate(endless, {}).render(TURNS, limit_s=0.2)
    assert time.monotonic() - started_s < 10  # and not hours


def test_a_long_output_is_cut_off() -> None:
    """A template may not make a prompt out of nothing."""
    with pytest.raises(InvalidRequestError, match="characters"):
        ChatTemplate("{% for a in range(99999) %}" + "x" * 100 + "{% endfor %}", {}).render(TURNS, limit_s=60)


def test_the_file_of_its_own_wins(tmp_path: Path) -> None:
    """As in transformers: chat_template.jinja before tokenizer_config.json."""
    config = {"chat_template": "old", "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = find_template(tmp_path)
    assert found is not None and found.render(TURNS) == "old"
    (tmp_path / "chat_template.jinja").write_text("new{{ eos_token }}")
    found = find_template(tmp_path)
    assert found is not None and found.render(TURNS) == "new</s>"


@pytest.mark.parametrize(
    "config", [{}, {"chat_template": ""}, {"chat_template": [{"name": "tool_use", "template": "x"}]}]
)
def test_there_may_be_none(tmp_path: Path, config: dict[str, object]) -> None:
    """Base models have no template, and some have only others than the default."""
    assert find_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert find_template(tmp_path) is None


def test_the_default_is_taken_of_several(tmp_path: Path) -> None:
    """A list has names."""
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    found = find_template(tmp_path)
    assert found is not None and found.render(TURNS) == "y"


def test_a_huge_template_is_refused(tmp_path: Path) -> None:
    """Real ones have a few KiB."""
    (tmp_path / "chat_template.jinja").write_text("x" * 300_000)
    with pytest.raises(ValueError, match="bytes"):
        find_template(tmp_path)
