"""Methods and their options from one line of text, and the sweep over what they keep or recompute.

`full,reuse,samkv:recompute=0.33,look=bound,samkv.paper,cacheblend:check=2`: a name, or a name, a colon and options; a
dot names a recipe of the method's class. A tuple is written with plus signs (`layers=1+3`).
"""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from samkv_rag.errors import SamKVError
from samkv_rag.methods import METHODS, Method
from samkv_rag.types import PromptPlan

_SWEPT = ("keep", "share", "tokens")
KEEP_HELP = "keep is a share between 0 and 1"


@dataclass(frozen=True)
class Setting:
    """A method with its options. `ratio` is the swept share: what is kept (`keep`), or recomputed (`share`, `tokens`).

    `name` is as the user wrote it; `label` tells all settings of a run apart.
    """

    name: str
    base: Method
    ratio: float | None = None

    @property
    def label(self) -> str:
        return self.name if self.ratio is None else f"{self.name}@{self.ratio:g}"

    @property
    def swept(self) -> str | None:
        """The option that takes the ratio; None for a method that has none."""
        return next((name for name in _SWEPT if name in _hints(type(self.base))), None)

    def method(self, plan: PromptPlan) -> Method:
        """The method for one prompt. A count of tokens per chunk is set to recompute about the share `ratio`: the first
        chunk, which needs nothing, is left out (EPIC)."""
        if self.ratio is None:
            return self.base
        value: float = self.ratio
        if self.swept == "tokens":
            value = round(self.ratio * plan.chunk_tokens / max(1, len(plan.chunks) - 1))
        return replace(self.base, **{str(self.swept): value})  # type: ignore[type-var]


def settings(methods: str, keep: Sequence[float]) -> list[Setting]:
    """All settings of a run, each once; `full` is added first, because everything is compared with it."""
    if bad := [share for share in keep if not 0 <= share <= 1]:
        raise SamKVError(f"{KEEP_HELP}, not {bad[0]:g}.")
    found: dict[object, Setting] = {}
    for name in ["full", *split(methods)]:
        base, given = parse(name)
        one = Setting(name, base)
        ratios = [None] if one.swept is None or one.swept in given else list(dict.fromkeys(keep))
        for ratio in ratios:
            found.setdefault((base, ratio), Setting(name, base, ratio))
    labels = [one.label for one in found.values()]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise SamKVError(f"Two settings are called {twice[0]}: leave one out, or give shares that differ by more.")
    return list(found.values())


def split(methods: str) -> list[str]:
    """The methods of a line: a comma before `option=value` continues the method before it."""
    names: list[str] = []
    for part in filter(None, (part.strip() for part in methods.split(","))):
        if names and "=" in part and ":" not in part:
            names[-1] += "," + part
        else:
            names.append(part)
    return names


def parse(name: str) -> tuple[Method, dict[str, Any]]:
    """A method and the options given; raises `SamKVError` that lists the choices."""
    head, _, options = name.partition(":")
    word, _, recipe = head.partition(".")
    if word not in METHODS:
        raise SamKVError(f"There is no method {word!r}; choose one of: {', '.join(METHODS)}.")
    kind = METHODS[word]
    if recipe and not isinstance(kind.__dict__.get(recipe), classmethod):
        raise SamKVError(f"Method {word!r} has no recipe {recipe!r}; write {word}, or {word}:option=value.")
    given = dict(_option(kind, part) for part in options.split(",") if part.strip())
    made: Any = getattr(kind, recipe)() if recipe else kind()
    return replace(made, **given), given


def written(method: Method) -> str:
    """A method as one line of text: its name, and the options that differ from their defaults."""
    if not is_dataclass(method):
        return method.name
    values = [(one, getattr(method, one.name)) for one in fields(method)]
    given = ",".join(f"{one.name}={_text(value)}" for one, value in values if value != one.default)
    return f"{method.name}:{given}" if given else method.name


def _text(value: Any) -> str:
    return "+".join(map(_text, value)) if isinstance(value, tuple) else str(value)


def _option(kind: type, part: str) -> tuple[str, Any]:
    name, _, text = (piece.strip() for piece in part.partition("="))
    hints = _hints(kind)
    if name not in hints:
        known = ", ".join(hints) or "none"
        raise SamKVError(f"Method {kind.name!r} has no option {name!r}; it has: {known}.")  # type: ignore[attr-defined]
    try:
        return name, _value(hints[name], text)
    except ValueError as error:
        raise SamKVError(f"{name}={text} cannot be used: {error}.") from error


def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _value(hint: Any, text: str) -> Any:
    """`text` as a value of the annotated type; raises `ValueError` that says what fits."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _first_fitting(inner, text)
    if origin is Literal:
        if text not in inner:
            raise ValueError(f"choose one of {', '.join(inner)}")
        return text
    if origin is tuple:
        return tuple(_value(inner[0], part) for part in text.split("+"))
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("write true or false")
        return text.lower() == "true"
    if hint is type(None):
        raise ValueError("leave it out instead")
    return hint(text)


def _first_fitting(hints: Sequence[Any], text: str) -> Any:
    problem = ValueError("nothing fits")
    for hint in hints:
        try:
            return _value(hint, text)
        except ValueError as error:
            problem = error
    raise problem
