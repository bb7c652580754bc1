"""The commands and their options; each command's work is in the module of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samkv_rag.cli.errors import Shell

app = typer.Typer(
    name="samkv-rag",
    cls=Shell,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Answer questions from your documents with sparse, reusable chunk caches.",
)
store_app = typer.Typer(
    invoke_without_command=True, help="What the store holds; `verify` checks it, `prune` makes room."
)
app.add_typer(store_app, name="store")

Store = Annotated[Path, typer.Option("--store", help="Folder with the caches and the index.", envvar="SAMKV_STORE")]
Model = Annotated[
    str | None, typer.Option("--model", help='"bundled", "bundled-small", a Hugging Face id, a folder, a GGUF file.')
]
Keep = Annotated[
    float | None,
    typer.Option(
        "--keep",
        min=0.0,
        max=1.0,
        help="Share of the passages that is chosen, and computed again; by default 0.15, but 64 tokens at least.",
    ),
]
Question = Annotated[str, typer.Argument(help="The question, in quotes.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer.")]
TopK = Annotated[int, typer.Option("--top-k", min=1, help="Passages to retrieve; each brings the one before it.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on stdout.")]
Embed = Annotated[
    str | None, typer.Option("--embed-model", help='"hashing" (offline, default) or a sentence-transformers model.')
]
KVDtype = Annotated[
    str | None, typer.Option("--kv-dtype", help="How caches are stored: model bf16 fp16 int8 fp8 int4.")
]
DEFAULT_STORE = Path(".samkv")


def _version(wanted: bool) -> None:
    if wanted:
        from samkv_rag import __version__

        typer.echo(f"samkv-rag {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Options of all commands."""


@app.command()
def demo(
    model: Model = None,
    keep: Keep = None,
    top_k: TopK = 12,
    store: Annotated[Path | None, typer.Option("--store", help="Folder to keep; default: a temporary one.")] = None,
    as_json: Json = False,
) -> None:
    """Ingest the bundled handbook, ask ten questions, compare samkv, full and reuse."""
    from samkv_rag.cli.demo import run

    run(model, keep, top_k, store, as_json)


@app.command()
def ingest(
    path: Annotated[Path, typer.Argument(help="A folder, or one file: .md .txt .html .pdf")],
    store: Store = DEFAULT_STORE,
    model: Model = None,
    embed_model: Embed = None,
    chunk_tokens: Annotated[int | None, typer.Option("--chunk-tokens", min=16, help="Longest chunk.")] = None,
    kv_dtype: KVDtype = None,
) -> None:
    """Compute the caches of a folder's documents; only what changed is computed again."""
    from samkv_rag.cli.ingest import run

    run(path, store, model, embed_model, chunk_tokens, kv_dtype)


@app.command()
def ask(
    question: Question,
    method: Annotated[str, typer.Option("--method", help="samkv, full, samkv:recompute=0.33, ...")] = "samkv",
    keep: Keep = None,
    top_k: TopK = 5,
    model: Model = None,
    max_new_tokens: MaxNewTokens = 64,
    store: Store = DEFAULT_STORE,
    show_context: Annotated[bool, typer.Option("--show-context", help="Print the passages too.")] = False,
    kv_dtype: KVDtype = None,
    as_json: Json = False,
) -> None:
    """Answer a question from the ingested documents."""
    from samkv_rag.cli.ask import Request, run

    run(Request(question, method, keep, top_k, model, max_new_tokens, store, show_context, as_json, kv_dtype))


@app.command()
def explain(
    question: Question,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("explain.html"),
    methods: Annotated[str, typer.Option("--methods", help="As for eval: samkv:look=bound,full")] = "samkv,full",
    keep: Keep = None,
    top_k: TopK = 5,
    model: Model = None,
    max_new_tokens: MaxNewTokens = 64,
    store: Store = DEFAULT_STORE,
    kv_dtype: KVDtype = None,
) -> None:
    """Write a page that shows what each method kept of every passage, and what it answered."""
    from samkv_rag.cli.explain import Request, run

    run(Request(question, out, methods, keep, top_k, model, max_new_tokens, store, kv_dtype))


@app.command()
def check(model: Model = None, as_json: Json = False) -> None:
    """Test that reuse is exact on a model: the parity gate."""
    from samkv_rag.cli.check import run

    run(model, as_json)


@app.command()
def profile(
    model: Model = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", help="A task or a question file, as for eval; may be repeated.")
    ] = None,
    store: Store = DEFAULT_STORE,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Questions of each source.")] = 20,
    chunks: Annotated[int | None, typer.Option("--chunks", min=1, help="Chunks a question.")] = None,
    keep: Annotated[
        float, typer.Option("--keep", min=0.0, max=1.0, help="Share of the passages that is chosen.")
    ] = 0.15,
    kv_dtype: KVDtype = None,
    as_json: Json = False,
) -> None:
    """Measure what a model should choose tokens by (layers, how much is seen, vicinity); this store then uses it."""
    from samkv_rag.cli.profile import Request, run

    run(Request(model, data or [], store, limit, chunks, keep, kv_dtype, as_json))


@app.command("eval")
def evaluate(
    data: Annotated[list[str], typer.Option("--data", help="A task, a question file or hub:NAME; may be repeated.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the records; the same one goes on where it stopped.")],
    model: Model = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="Names, with options: samkv:look=bound,samkv.paper; default: all.")
    ] = None,
    keep: Annotated[str, typer.Option("--keep", help="Shares kept, or recomputed by methods that keep all.")] = "0.15",
    limit: Annotated[int, typer.Option("--limit", min=1, help="Questions of each source.")] = 100,
    chunks: Annotated[
        int | None, typer.Option("--chunks", min=1, help="Chunks a question (tasks: 12; files: all).")
    ] = None,
    chunk_tokens: Annotated[
        int | None, typer.Option("--chunk-tokens", min=16, help="Fill or cut chunks to this.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the generated tasks.")] = 0,
    max_new_tokens: Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer.")] = None,
    sink_prefix: Annotated[
        str, typer.Option("--sink-prefix", help="What chunks are ingested behind: head, bos or none.")
    ] = "head",
    profile: Annotated[
        Path | None,
        typer.Option("--profile", help="A store whose profile of the model is used."),
    ] = None,
) -> None:
    """Answer questions by every method from the same prompts; resumes after a kill."""
    from samkv_rag.cli.evaluate import Request, run

    sizes = limit, chunks, chunk_tokens, seed, max_new_tokens
    run(Request(model, data, methods, keep, *sizes, sink_prefix, out, profile))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders that samkv-rag eval wrote.")],
    out: Annotated[Path | None, typer.Option("--out", help="Markdown file; pictures go beside it.")] = None,
    pack: Annotated[Path | None, typer.Option("--pack", help="Write compact copies of the folders here.")] = None,
) -> None:
    """Tables with intervals, verdicts and pictures of evaluations."""
    from samkv_rag.cli.report import run

    run(folders, out, pack)


OwnStore = Annotated[Path | None, typer.Option("--store", help="Folder with the caches and the index.")]


@store_app.callback()
def store_stats(ctx: typer.Context, store: Store = DEFAULT_STORE, as_json: Json = False) -> None:
    """Entries, bytes and hit rate."""
    ctx.obj = (store, as_json)
    if ctx.invoked_subcommand is None:
        from samkv_rag.cli.store import stats

        stats(store, as_json)


@store_app.command()
def verify(ctx: typer.Context, store: OwnStore = None, as_json: Json = False) -> None:
    """Read every entry and check its sums; exit code 1 if one is damaged."""
    from samkv_rag.cli.store import verify as run

    run(store or ctx.obj[0], as_json or ctx.obj[1])


@store_app.command()
def prune(
    ctx: typer.Context,
    max_bytes: Annotated[str | None, typer.Option("--max-bytes", help="Shrink to this size, e.g. 20GiB.")] = None,
    store: OwnStore = None,
    as_json: Json = False,
) -> None:
    """Remove damaged entries and leftovers, and the longest unused entries above --max-bytes."""
    from samkv_rag.cli.store import prune as run

    run(store or ctx.obj[0], as_json or ctx.obj[1], max_bytes)
