"""The two files of an entry.

`<key>.kv.safetensors` holds `kv` `(L, B, 2, G, BLOCK, D)`, or records `(L, B, bytes)` of quantised blocks.
`<key>.summary.safetensors` holds what selection reads, and vouches for the other file: the CRC32 of its header and of
every block of every layer. Its own checksum covers all of its bytes, so that no flipped bit in either file goes
unseen. Both are ordinary safetensors files.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from samkv_rag.store.errors import DamagedEntry
from samkv_rag.store.layout import DTYPE_NAMES, DTYPES, KVLayout, byte_view, own
from samkv_rag.store.quantise import KVForm, StoredBlocks
from samkv_rag.types import ChunkKV, ChunkSummary

FORMAT = "samkv-chunk"
VERSION = "2"
_FIELD = b'"checksum":"'
_BLANK = b"0" * 32
_PARTS = ("token_ids", "mean", "low", "high", "local_query")


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """What a summary file says: the summary, and what is needed to read the K/V file and to trust it.

    `block_crcs` is `(L, B)`. `content` is a digest of the summary's tensors and the K/V checksums.
    """

    summary: ChunkSummary
    form: KVForm
    layout: KVLayout
    block_crcs: Tensor
    header_bytes: int
    header_crc: int
    namespace: str
    fingerprint: str
    content: str
    file_bytes: int

    @property
    def kv_file_bytes(self) -> int:
        return self.header_bytes + self.layout.nbytes

    @property
    def total_bytes(self) -> int:
        """Bytes of both files."""
        return self.file_bytes + self.kv_file_bytes


@dataclass(frozen=True, slots=True)
class EncodedEntry:
    """The bytes of both files, ready to be written, and the entry they make."""

    entry: StoredEntry
    kv_header: bytes
    kv_payload: memoryview
    summary_file: bytes


def encode(key: str, chunk: ChunkKV, namespace: str, fingerprint: str, kv_dtype: str = "model") -> EncodedEntry:
    """The files of `chunk` under `key`, K and V stored as `kv_dtype`."""
    form = KVForm.of(chunk.kv, kv_dtype)
    kv = form.encode(chunk.kv.detach().to("cpu")).contiguous()
    layout, payload = KVLayout.of(kv), byte_view(kv)
    header = _kv_header(key, layout)
    tensors = {name: own(getattr(chunk.summary, name)) for name in _PARTS}
    text = bytearray(chunk.summary.text.encode("utf-8", "surrogatepass"))
    tensors["text"] = torch.frombuffer(text, dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)
    tensors["block_crcs"] = _crcs(payload, layout)
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "key": key,
        "namespace": namespace,
        "fingerprint": fingerprint,
        "kv_dtype": form.kv_dtype,
        "dtype": DTYPE_NAMES[form.dtype],
        "stored_dtype": DTYPE_NAMES[layout.dtype],
        "kv_shape": json.dumps(layout.shape),
        "header_bytes": str(len(header)),
        "header_crc": str(zlib.crc32(header)),
        "content": _content(tensors, form, layout),
    }
    summary_file = _sealed(save(tensors, {**facts, "checksum": _BLANK.decode()}))
    return EncodedEntry(_stored(tensors, facts, len(summary_file)), header, payload, summary_file)


def decode(key: str, raw: bytes) -> StoredEntry:
    """The entry whose summary file has the bytes `raw`; DamagedEntry when they are not what was written for `key`."""
    if not _is_sealed(raw):
        raise DamagedEntry(key, "the checksum of its summary file does not match")
    facts = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    if (facts.get("format"), facts.get("version")) != (FORMAT, VERSION):
        raise DamagedEntry(key, f"it has format {facts.get('format')} {facts.get('version')}, not {FORMAT} {VERSION}")
    if facts["key"] != key:
        raise DamagedEntry(key, f"its file was written for {facts['key']}")
    return _stored(load(raw), facts, len(raw))


def read_kv(
    path: Path, key: str, entry: StoredEntry, blocks: Sequence[int] | None, layers: Sequence[int] | None = None
) -> StoredBlocks:
    """`blocks` of `layers` from the K/V file, as stored; None means all.

    Reads the header and what is asked for, nothing else, and checks the sums. DamagedEntry when they differ,
    FileNotFoundError when there is no file, IndexError for blocks or layers that the entry does not have.
    """
    layout = entry.layout
    deep, chosen = layout.wanted(blocks, layers)
    out = torch.empty((len(deep), len(chosen), *layout.shape[2:]), dtype=layout.dtype)
    view, filled = byte_view(out), 0
    with FileIO(path) as file:
        _check_header(file, key, entry)
        for offset, length in layout.reads(chosen, deep):
            _fill(file, key, entry.header_bytes + offset, view[filled : filled + length])
            filled += length
    _check_blocks(view, key, entry, chosen, deep)
    return StoredBlocks(entry.form, out)


def check_kv(path: Path, key: str, entry: StoredEntry) -> None:
    """Check every sum of the K/V file; raises like `read_kv`. Holds one block of all layers in memory at a time."""
    for block in range(entry.layout.blocks):
        read_kv(path, key, entry, [block])
    if path.stat().st_size != entry.kv_file_bytes:
        raise DamagedEntry(key, f"its K/V file has not the {entry.kv_file_bytes} bytes that were written")


def _kv_header(key: str, layout: KVLayout) -> bytes:
    tensor = {"dtype": DTYPE_NAMES[layout.dtype], "shape": layout.shape, "data_offsets": [0, layout.nbytes]}
    facts = {"format": FORMAT, "version": VERSION, "key": key}
    header = json.dumps({"__metadata__": facts, "kv": tensor}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _stored(tensors: dict[str, Tensor], facts: dict[str, str], file_bytes: int) -> StoredEntry:
    text = byte_view(tensors["text"]).tobytes().decode("utf-8", "surrogatepass")
    heads, width = tensors["mean"].shape[2:]
    return StoredEntry(
        summary=ChunkSummary(text, *(tensors[name] for name in _PARTS)),
        form=KVForm(facts["kv_dtype"], DTYPES[facts["dtype"]], heads, width),
        layout=KVLayout(DTYPES[facts["stored_dtype"]], tuple(json.loads(facts["kv_shape"]))),
        block_crcs=tensors["block_crcs"],
        header_bytes=int(facts["header_bytes"]),
        header_crc=int(facts["header_crc"]),
        namespace=facts["namespace"],
        fingerprint=facts["fingerprint"],
        content=facts["content"],
        file_bytes=file_bytes,
    )


def _crcs(payload: memoryview, layout: KVLayout) -> Tensor:
    size = layout.block_bytes
    sums = [zlib.crc32(payload[at : at + size]) for at in range(0, layout.nbytes, size)]
    return torch.tensor(sums, dtype=torch.int64).reshape(layout.layers, layout.blocks)


def _content(tensors: dict[str, Tensor], form: KVForm, layout: KVLayout) -> str:
    digest = hashlib.blake2b(f"{form} {layout}".encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(byte_view(tensors[name]))
    return digest.hexdigest()


def _sealed(raw: bytes) -> bytes:
    """`raw` with its blank checksum filled in. The field is found first in the header, where quotes inside any other
    value are escaped."""
    at = raw.index(_FIELD) + len(_FIELD)
    return b"".join((raw[:at], _seal(raw), raw[at + len(_BLANK) :]))


def _is_sealed(raw: bytes) -> bool:
    at = raw.find(_FIELD, 8, 8 + int.from_bytes(raw[:8], "little"))
    if at < 0:
        return False
    at += len(_FIELD)
    end = at + len(_BLANK)
    return raw[at:end] == _seal(b"".join((raw[:at], _BLANK, raw[end:])))


def _seal(blank: bytes) -> bytes:
    return hashlib.blake2b(blank, digest_size=16).hexdigest().encode()


def _check_header(file: FileIO, key: str, entry: StoredEntry) -> None:
    header = memoryview(bytearray(entry.header_bytes))
    _fill(file, key, 0, header)
    if zlib.crc32(header) != entry.header_crc:
        raise DamagedEntry(key, "the header of its K/V file is not the one that was written")


def _fill(file: FileIO, key: str, offset: int, target: memoryview) -> None:
    file.seek(offset)
    while target:
        count = file.readinto(target)
        if not count:
            raise DamagedEntry(key, "its K/V file is too short")
        target = target[count:]


def _check_blocks(view: memoryview, key: str, entry: StoredEntry, blocks: list[int], layers: list[int]) -> None:
    size, at = entry.layout.block_bytes, 0
    for layer, expected in zip(layers, entry.block_crcs[layers][:, blocks].tolist(), strict=True):
        for block, crc in zip(blocks, expected, strict=True):
            if zlib.crc32(view[at : at + size]) != crc:
                raise DamagedEntry(key, f"the checksum of block {block} of layer {layer} does not match")
            at += size
