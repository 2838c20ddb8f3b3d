"""Markup: HTML and SVG elements whose text and attributes are escaped by construction."""

from __future__ import annotations

import html
import re

_VOID = {"meta", "br", "hr"}
# Neither HTML nor XML may hold these: most control characters, lone surrogates, non-characters.
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


class Markup(str):
    """Text that is markup already; made by `tag` and `joined` alone."""

    __slots__ = ()


def clean(text: str) -> str:
    """Return *text* with what no document may hold shown as the replacement character."""
    return _FORBIDDEN.sub("\ufffd", text.replace("\r\n", "\n"))


def tag(name: str, /, *children: str, **attributes: str | float | None) -> Markup:
    """Return one element; a child that is no `Markup` is text.

    Args:
        attributes: a trailing underscore is dropped (``class_``), the others become hyphens; None: absent.
    """
    given = "".join(_attribute(key, item) for key, item in attributes.items() if item is not None)
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{joined(*children)}</{name}>")


def joined(*children: str) -> Markup:
    """Return the children one after the other."""
    return Markup("".join(child if isinstance(child, Markup) else _text(child) for child in children))


def raw(text: str) -> Markup:
    """Return *text* of our own source (a style sheet) as it stands."""
    return Markup(text)


def _text(text: str) -> str:
    return html.escape(clean(text))


def _attribute(key: str, value: str | float) -> str:
    text = value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
    name = key.rstrip("_").replace("_", "-")
    return f' {"viewBox" if name == "viewbox" else name}="{_text(text)}"'
