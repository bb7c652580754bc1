"""The explanation as one HTML page. The template escapes whatever it is given; there is no script in it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from samkv_rag.errors import SamKVError

if TYPE_CHECKING:
    from samkv_rag.explain.views import Explanation, Part

WORDS = {
    "anchor": "anchor: kept for its place at an end of the chunk",
    "selected": "selected for its score",
    "kept": "kept",
    "packed": "kept in four bits a number",
    "dropped": "dropped",
}


def render(explanation: Explanation) -> str:
    """The page; raises `SamKVError` when its template engine is missing."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise SamKVError("The page needs jinja2: pip install 'samkv-rag[cli]'.") from error
    templates = Environment(
        loader=PackageLoader("samkv_rag.explain", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return templates.get_template("page.html.jinja").render(page=explanation, tip=tip)


def tip(part: Part) -> str:
    """What is shown about a part on hover and on focus."""
    stop = part.start + part.tokens - 1
    words = [f"Block {part.block + 1}, tokens {part.start + 1} to {stop + 1}", WORDS[part.state]]
    if part.state != "dropped":
        words.append("recomputed" if part.recomputed else "reused as stored")
    elif part.recomputed:
        words.append("recomputed for what others see in it")
    if part.score is not None:
        words.append(f"score {part.score:+.2f}")
    return "; ".join(words)


def frame(html: str) -> str:
    """A page inside a notebook's page, isolated from its styles."""
    look = "width:100%;height:40rem;border:0"
    return f'<iframe sandbox title="samkv-rag explain" style="{look}" srcdoc="{escape(html)}"></iframe>'
