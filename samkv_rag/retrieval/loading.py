"""From a path to chunks: which files, their text, and sentence-wise splitting with the engine's tokenizer."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llama_index.core import SimpleDirectoryReader
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, Document
from tenacity import RetryError

from samkv_rag.retrieval.errors import EmptyFile, RetrievalError, UnreadableFile
from samkv_rag.retrieval.readers import PARAGRAPH, extractors

SUFFIXES = tuple(extractors())
Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file and the digest of its bytes."""

    path: Path
    digest: str


def find_files(
    path: Path,
    failed: Callable[[OSError], None] = lambda error: None,
    linked: Callable[[Path], None] = lambda folder: None,
) -> list[Path]:
    """The readable kinds of files in `path`, sorted; hidden files and folders below it are left out. `failed` is called
    for folders that cannot be read, `linked` for links to folders, which are not followed: they may lead in circles."""
    if not path.exists():
        raise RetrievalError(
            f"There is no file or folder {path}; check the path. What was ingested from a folder that is gone is "
            "removed by ingesting an empty folder of its name."
        )
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise RetrievalError(f"{path.name} is not one of {' '.join(SUFFIXES)}; convert it to one of these first.")
        return [place(path)]
    if not os.access(path, os.R_OK | os.X_OK):
        raise RetrievalError(f"The folder {path} cannot be read; check its permissions.")
    # SimpleDirectoryReader's own walk treats a folder below a hidden one (a virtual environment) as hidden altogether.
    return sorted(_walk(place(path), failed, linked))


def place(path: Path) -> Path:
    """The absolute path without links to folders; a link to a file keeps its own name, as it does in a folder."""
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def is_gone(path: Path) -> bool:
    """Whether no file is there; False for one in a folder that cannot be read: it is not known to be gone."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except PermissionError:
        return False
    except OSError:
        return True


def is_hidden(path: Path, base: Path) -> bool:
    """Whether the walk through `base` leaves `path`, which is below it, out by its name."""
    return any(part.startswith(".") for part in path.relative_to(base).parts)


def _walk(root: Path, failed: Callable[[OSError], None], linked: Callable[[Path], None]) -> Iterator[Path]:
    for folder, folders, names in os.walk(root, onerror=failed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            if os.path.islink(os.path.join(folder, name)):
                linked(Path(folder) / name)
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(folder) / name


def fingerprint(path: Path) -> SourceFile:
    """The file's content digest; raises UnreadableFile."""
    try:
        str(path).encode()
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
            raise UnreadableFile("not a file but a pipe or a device")
        return SourceFile(path, hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest())
    except UnicodeEncodeError as error:
        raise UnreadableFile("its name is not UTF-8; rename it") from error
    except OSError as error:
        raise UnreadableFile(error.strerror or str(error)) from error


def load(source: SourceFile) -> list[Document]:
    """The file's text as LlamaIndex documents, one per section; raises UnreadableFile with the reason, EmptyFile
    if there is none.

    Halves of surrogate pairs, which occur in PDFs, are joined; a lone one becomes U+FFFD.
    """
    try:
        reader = SimpleDirectoryReader(
            input_files=[str(source.path)], file_extractor=extractors(), file_metadata=lambda _: {}, raise_on_error=True
        )
        documents = [document for document in reader.load_data() if document.text.strip()]
    except Exception as error:  # readers raise whatever their parsers raise: all of it concerns this file only
        raise UnreadableFile(_reason(error)) from error
    if not documents:
        scanned = source.path.suffix.lower() == ".pdf"
        raise EmptyFile("no text in it" + (" (a scanned PDF needs OCR first)" if scanned else ""))
    for document in documents:
        document.set_content(document.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return documents


def _reason(error: BaseException) -> str:
    if isinstance(error, RetryError):
        return _reason(error.last_attempt.exception() or error)
    if error.__cause__ is not None and str(error) == "Error loading file":
        return _reason(error.__cause__)
    if isinstance(error, UnicodeDecodeError):
        if error.encoding.startswith("utf-16"):
            return "it is cut off, or not the UTF-16 that its first bytes say it is; save it as UTF-8"
        return "it is not text in UTF-8; save it as such (iconv -f latin1 -t utf-8)"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def split(source: SourceFile, documents: list[Document], tokenize: Tokenize, chunk_size: int) -> list[BaseNode]:
    """Chunks of whole sentences, at most `chunk_size` tokens, in order; ids depend on path and content."""
    name = f"{source.path}\0{source.digest}".encode("utf-8", "surrogatepass")
    stem = hashlib.blake2b(name, digest_size=10).hexdigest()
    for document in documents:  # what is in neither text must not count as part of the chunk
        document.excluded_embed_metadata_keys = document.excluded_llm_metadata_keys = list(document.metadata)
    splitter = SentenceSplitter(
        chunk_size=chunk_size,
        chunk_overlap=0,
        tokenizer=tokenize,
        paragraph_separator=PARAGRAPH,
        include_metadata=False,
        include_prev_next_rel=False,
    )
    try:
        nodes = splitter.get_nodes_from_documents(documents)
    except ValueError as error:
        raise UnreadableFile(f"cannot be split into chunks of {chunk_size} tokens: {error}") from error
    except TimeoutError as error:  # of the expressions that find where sentences end
        raise UnreadableFile("too long to be cut into sentences; put blank lines between its paragraphs") from error
    return [_named(node, source.path, stem, position) for position, node in enumerate(nodes)]


def _named(node: BaseNode, path: Path, stem: str, position: int) -> BaseNode:
    """The node with our own id. File name and headings are for the vector only, not for the prompt."""
    section = f"{path.stem} {node.metadata.get('section', '')}".replace("-", " ").replace("_", " ").strip()
    node.id_ = f"{stem}-{position}"
    node.relationships = {}
    node.metadata = {"path": str(path), "position": position, "section": section}
    node.excluded_embed_metadata_keys = ["path", "position"]
    node.excluded_llm_metadata_keys = ["path", "position", "section"]
    return node
