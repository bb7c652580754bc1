"""One sentence and the right exit code for what went wrong; a traceback only with --debug."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from samkv_rag.cli.console import notes
from samkv_rag.errors import SamKVError

USER_ERROR = 1
INTERRUPTED = 130
KEPT = "What was finished is kept; run the same command to go on."
"""What an interrupted command says that goes on where it was."""


class Shell(TyperGroup):
    """The group of all commands: turns exceptions into messages and exit codes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As usual, but --debug may also follow the command."""
        own = args[: args.index("--")] if "--" in args else args
        if "--debug" in own:
            args = ["--debug", *(arg for arg in own if arg != "--debug"), *args[len(own) :]]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            notes.print(f"Stopped. {stop}".strip())
            raise typer.Exit(INTERRUPTED) from None
        except (SamKVError, OSError, MemoryError, RuntimeError) as error:
            if not _is_for_the_user(error):
                raise
            if ctx.params.get("debug"):
                traceback.print_exc()
            notes.print(f"[red]Error:[/red] {_sentence(error)}", soft_wrap=True)
            raise typer.Exit(USER_ERROR) from None


@contextmanager
def going_on() -> Iterator[None]:
    """What is interrupted within goes on, when the command is run again, where it was: say so."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(str(stop) or KEPT) from None


def _is_for_the_user(error: Exception) -> bool:
    """True for all errors but bugs and a pipe whose reader has gone, which typer handles."""
    known = isinstance(error, SamKVError | OSError) or _is_memory(error)
    return known and not isinstance(error, BrokenPipeError)


def _is_memory(error: BaseException) -> bool:
    """True if memory ran out: Python has an error for it, torch only texts, one for the GPU and one for the CPU."""
    texts = ("out of memory", "allocate memory") if isinstance(error, RuntimeError) else ()
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def _sentence(error: BaseException) -> str:
    from rich.markup import escape

    if _is_memory(error):
        return "The memory is full; use a smaller model, fewer passages (--top-k) or smaller chunks (--chunk-tokens)."
    if isinstance(error, OSError) and error.filename and error.strerror:
        return escape(f"{error.strerror}: {error.filename}")
    return escape(str(error) or type(error).__name__)
