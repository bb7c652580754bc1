"""The two files of an entry.

`<key>.kv.safetensors` holds `kv` `(L, B, 2, G, BLOCK, D)`, or records `(L, B, bytes)` of quantised blocks; further
stacks follow as `kv.1` and so on. An entry of one stack has version 2, one of several has 3.
`<key>.summary.safetensors` holds what selection reads, and vouches for the other file: the CRC32 of its header and of
every block of every layer. Its own checksum covers all of its bytes, so that no flipped bit in either file goes
unnoticed. Both are ordinary safetensors files.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from samkv_rag.store.errors import DamagedEntry
from samkv_rag.store.layout import DTYPE_NAMES, DTYPES, KVLayout, byte_view, on_host, own
from samkv_rag.store.quantise import KVForm, StoredBlocks
from samkv_rag.types import ChunkKV, ChunkSummary

FORMAT = "samkv-chunk"
VERSION = "2"
VERSION_OF_SEVERAL = "3"
_FIELD = b'"checksum":"'
_BLANK = b"0" * 32
_SCORED = ("mean", "low", "high", "local_query")


@dataclass(frozen=True, slots=True)
class StoredStack:
    """One stack in the K/V file, starting at byte `start`; `block_crcs` is `(L, B)`."""

    form: KVForm
    layout: KVLayout
    block_crcs: Tensor
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.layout.nbytes


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """The content of a summary file: the summary, and what is needed to read and verify the K/V file.

    `content` is a digest of the summary's tensors and the K/V checksums.
    """

    summary: ChunkSummary
    stacks: tuple[StoredStack, ...]
    header_bytes: int
    header_crc: int
    namespace: str
    fingerprint: str
    content: str
    file_bytes: int

    @property
    def kv_file_bytes(self) -> int:
        return self.stacks[-1].stop

    @property
    def total_bytes(self) -> int:
        """Bytes of both files."""
        return self.file_bytes + self.kv_file_bytes


@dataclass(frozen=True, slots=True)
class EncodedEntry:
    """The bytes of both files, ready to be written, and the entry that they form."""

    entry: StoredEntry
    kv_header: bytes
    kv_payloads: tuple[memoryview, ...]
    summary_file: bytes


def encode(key: str, chunk: ChunkKV, namespace: str, fingerprint: str, kv_dtype: str = "model") -> EncodedEntry:
    """The files of `chunk` under `key`, with K and V stored as `kv_dtype`."""
    stacks = chunk.stacks
    forms = [KVForm.of(one.kv, kv_dtype) for one in stacks]
    encoded = [form.encode(one.kv.detach().to("cpu")).contiguous() for form, one in zip(forms, stacks, strict=True)]
    layouts, payloads = [KVLayout.of(kv) for kv in encoded], tuple(byte_view(kv) for kv in encoded)
    version = VERSION if len(stacks) == 1 else VERSION_OF_SEVERAL
    header = _kv_header(key, layouts, version)
    tensors = _summary_tensors(chunk.summary)
    for index, (layout, payload) in enumerate(zip(layouts, payloads, strict=True)):
        tensors[_of("block_crcs", index)] = _crcs(payload, layout)
    facts = {
        "format": FORMAT,
        "version": version,
        "key": key,
        "namespace": namespace,
        "fingerprint": fingerprint,
        "kv_dtype": forms[0].kv_dtype,
        "dtype": DTYPE_NAMES[forms[0].dtype],
        "stored_dtype": DTYPE_NAMES[layouts[0].dtype],
        **{_of("kv_shape", index): json.dumps(layout.shape) for index, layout in enumerate(layouts)},
        "header_bytes": str(len(header)),
        "header_crc": str(zlib.crc32(header)),
        "content": _content(tensors, forms, layouts),
    }
    summary_file = _sealed(save(tensors, {**facts, "checksum": _BLANK.decode()}))
    return EncodedEntry(_stored(tensors, facts, len(summary_file)), header, payloads, summary_file)


def decode(key: str, raw: bytes) -> StoredEntry:
    """The entry whose summary file has the bytes `raw`; DamagedEntry if they are not what was written for `key`."""
    if not _is_sealed(raw):
        raise DamagedEntry(key, "the checksum of its summary file does not match")
    facts = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    if facts.get("format") != FORMAT or facts.get("version") not in (VERSION, VERSION_OF_SEVERAL):
        raise DamagedEntry(key, f"it has format {facts.get('format')} {facts.get('version')}, not {FORMAT} {VERSION}")
    if facts["key"] != key:
        raise DamagedEntry(key, f"its file was written for {facts['key']}")
    return _stored(load(raw), facts, len(raw))


def read_kv(
    path: Path, key: str, entry: StoredEntry, blocks: Sequence[int] | None, layers: Sequence[int] | None = None,
    stack: int = 0, pinned: bool = False,
) -> StoredBlocks:  # fmt: skip
    """Read `blocks` of `layers` of a stack from the K/V file, as stored; None means all. `pinned`: into memory that a
    GPU can access directly, if the system allows it.

    Reads only the header and what is requested, and verifies the checksums. DamagedEntry if they differ,
    FileNotFoundError if there is no file, IndexError for blocks or layers that the entry does not have.
    """
    stored = entry.stacks[stack]
    layout = stored.layout
    deep, chosen = layout.wanted(blocks, layers)
    out = on_host((len(deep), len(chosen), *layout.shape[2:]), layout.dtype, pinned)
    view, filled = byte_view(out), 0
    with FileIO(path) as file:
        _check_header(file, key, entry)
        for offset, length in layout.reads(chosen, deep):
            _fill(file, key, stored.start + offset, view[filled : filled + length])
            filled += length
    _check_blocks(view, key, stored, chosen, deep)
    return StoredBlocks(stored.form, out)


def check_kv(path: Path, key: str, entry: StoredEntry) -> None:
    """Check all checksums of the K/V file; raises like `read_kv`. Holds one block of all layers in memory at a time."""
    for stack, stored in enumerate(entry.stacks):
        for block in range(stored.layout.blocks):
            read_kv(path, key, entry, [block], stack=stack)
    if path.stat().st_size != entry.kv_file_bytes:
        raise DamagedEntry(key, f"its K/V file has not the {entry.kv_file_bytes} bytes that were written")


def _of(name: str, stack: int) -> str:
    """The name under which the files hold `name` of a stack."""
    return f"{name}.{stack}" if stack else name


def _summary_tensors(summary: ChunkSummary) -> dict[str, Tensor]:
    tensors = {"token_ids": own(summary.token_ids)}
    for index, one in enumerate(summary.stacks):
        tensors |= {_of(name, index): own(getattr(one, name)) for name in _SCORED}
    text = bytearray(summary.text.encode("utf-8", "surrogatepass"))
    tensors["text"] = torch.frombuffer(text, dtype=torch.uint8) if text else torch.empty(0, dtype=torch.uint8)
    return tensors


def _kv_header(key: str, layouts: Sequence[KVLayout], version: str) -> bytes:
    tensors, end = {}, 0
    for index, layout in enumerate(layouts):
        offsets = [end, end := end + layout.nbytes]
        tensors[_of("kv", index)] = {
            "dtype": DTYPE_NAMES[layout.dtype], "shape": layout.shape, "data_offsets": offsets
        }  # fmt: skip
    facts = {"format": FORMAT, "version": version, "key": key}
    header = json.dumps({"__metadata__": facts, **tensors}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _stored(tensors: dict[str, Tensor], facts: dict[str, str], file_bytes: int) -> StoredEntry:
    text = byte_view(tensors["text"]).tobytes().decode("utf-8", "surrogatepass")
    ids, summaries, stacks = tensors["token_ids"], list[ChunkSummary](), list[StoredStack]()
    end = int(facts["header_bytes"])
    while (shape := facts.get(_of("kv_shape", len(stacks)))) is not None:
        mean, low, high, local = (tensors[_of(name, len(stacks))] for name in _SCORED)
        form = KVForm(facts["kv_dtype"], DTYPES[facts["dtype"]], *mean.shape[2:])
        layout = KVLayout(DTYPES[facts["stored_dtype"]], tuple(json.loads(shape)))
        summaries.append(ChunkSummary(text, ids, mean, low, high, local))
        stacks.append(StoredStack(form, layout, tensors[_of("block_crcs", len(stacks))], end))
        end = stacks[-1].stop
    return StoredEntry(
        summary=replace(summaries[0], others=tuple(summaries[1:])),
        stacks=tuple(stacks),
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


def _content(tensors: dict[str, Tensor], forms: Sequence[KVForm], layouts: Sequence[KVLayout]) -> str:
    shapes = " ".join(f"{form} {layout}" for form, layout in zip(forms, layouts, strict=True))
    digest = hashlib.blake2b(shapes.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(byte_view(tensors[name]))
    return digest.hexdigest()


def _sealed(raw: bytes) -> bytes:
    """`raw` with its blank checksum filled in. The first match is the field itself, in the header, where quotes inside
    any other value are escaped."""
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


def _check_blocks(view: memoryview, key: str, stored: StoredStack, blocks: list[int], layers: list[int]) -> None:
    size, at = stored.layout.block_bytes, 0
    for layer, expected in zip(layers, stored.block_crcs[layers][:, blocks].tolist(), strict=True):
        for block, crc in zip(blocks, expected, strict=True):
            if zlib.crc32(view[at : at + size]) != crc:
                raise DamagedEntry(key, f"the checksum of block {block} of layer {layer} does not match")
            at += size
