"""Compile kernels ahead of time for GPUs that are not there; print what the machine code says of them, as JSON.

`python -m tests.kernels.compiled FOLDER '[["attend", "bf16", 90], ...]'`; see `test_compiled`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from samkv_kernels.jit import block_scores, packed_attention, rope_gather, sparse_attention

_TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_COUNTED = ("LDGSTS", "UTMALDG", "HGMMA", "HMMA", "STG")
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+([^;]+);", re.MULTILINE)
_JUMP = re.compile(r"\bBRA\S*\s.*?0x([0-9a-f]+)")
_THREE, _FOUR, _FIVE = (("i32",) * count for count in (3, 4, 5))
_HEADS, _REP, _DIM = 8, 4, 128  # an 8B Llama's
ROOM = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10, 120: 99 << 10}
"""Bytes of shared memory that a program may have, by compute capability."""
_KINDS = {"bf16": (torch.bfloat16, tl.bfloat16), "fp32": (torch.float32, tl.float32)}


def compiled(kernel: Any, arguments: Mapping[str, Any], constants: Mapping[str, Any], sm: int, folder: Path) -> Any:
    """Facts about `kernel`, compiled for arguments of the types named; `constants` hold warps and stages too."""
    options = {name: constants[name] for name in ("num_warps", "num_stages") if name in constants}
    fixed = {(kernel.arg_names.index(name),): value for name, value in constants.items() if name not in options}
    signature = {name: arguments.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, fixed, _aligned(kernel.arg_names, signature))
    made = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    path = folder / "kernel.cubin"
    path.write_bytes(made.asm["cubin"])
    usage = re.search(r"REG:(\d+) STACK:(\d+)", _dump("--dump-resource-usage", path))
    assert usage is not None
    sass = _dump("--dump-sass", path)
    counts = {name: len(re.findall(rf"\b{name}\b", sass)) for name in _COUNTED}
    wide = len(re.findall(r"\bSTG\.E(?:\.\w+)*\.128", sass))
    facts = {"registers": int(usage[1]), "stack": int(usage[2]), "shared": made.metadata.shared, "wide_stores": wide}
    return {**facts, **counts, "loops": [_counted(loop) for loop in loops(sass)]}


def loops(sass: str) -> list[list[str]]:
    """The instructions of every loop: those that a backward jump spans."""
    code = [(int(place, 16), text) for place, text in _INSTRUCTION.findall(sass)]
    jumps = [(int(found[1], 16), place) for place, text in code if (found := _JUMP.search(text))]
    return [[text for place, text in code if begin <= place <= end] for begin, end in jumps if begin < end]


def _counted(loop: list[str]) -> dict[str, int]:
    """Count a loop's products, loads that run ahead, and accesses to what is in memory for want of registers."""
    kinds = {"products": r"\bHG?MMA\b", "ahead": r"\b(LDGSTS|UTMALDG)\b", "spilled": r"\b(STL|LDL)\b"}
    return {name: sum(re.search(kind, text) is not None for text in loop) for name, kind in kinds.items()}


def _aligned(names: list[str], signature: Mapping[str, Any]) -> dict[Any, Any]:
    """Pointers and strides are divisible by 16, as torch makes them."""
    aligned: list[tuple[int, ...]] = []
    for name, kind in signature.items():
        if isinstance(kind, tuple):
            aligned += [(names.index(name), index) for index, part in enumerate(kind) if part != "constexpr"]
        elif kind.startswith("*"):
            aligned.append((names.index(name),))
    return {path: [["tt.divisibility", 16]] for path in aligned}


def _dump(what: str, path: Path) -> str:
    return subprocess.run([_TOOL, what, path], capture_output=True, text=True, check=True).stdout


def attention(name: str, variant: str, sm: int, folder: Path) -> Any:
    """`variant` is the type, and head dimension and rows if not 128 and many: "bf16", "fp32 256", "fp32 256 16"."""
    kind, dim, rows = _sized(variant)
    kernel = sparse_attention.shares_kernel if name == "shares" else sparse_attention.attend_kernel
    types: dict[str, Any] = dict.fromkeys(("query", "key", "value"), f"*{kind}")
    types |= {
        "out": f"*{kind}" if name in ("attend", "sinks", "apart") else "*fp32",
        "normaliser": "*fp32",
        "levels": "*fp32",
        "first": "*i32",
        "last": "*i32",
        "sinks": f"*{kind}",
        "places": "*i64",
    }
    types |= {"n_query": "i32", "n_key": "i32", "span_stride": "i32", "scale": "fp32", "cap": "fp32"}
    types |= {f"{letter}_strides": _THREE for letter in "qkvo"}
    dtype, dot = _KINDS[kind]
    tile = sparse_attention.tiles(dtype, dim, rows, ROOM[sm])
    if name == "shares":
        tile = sparse_attention.share_tiles(dtype, dim, rows)
    constants = {"GROUPS": _HEADS, "REP": _REP, "DIM": dim, "WIDE": dim, "SOFTCAP": False, "DOT": dot, **tile}
    if name != "shares":
        constants |= {
            "SINKS": name == "sinks",
            "NORMALISER": name == "normaliser",
            "SPLITS": 16 if name == "split" else 1,
            "APART": name == "apart",
            "HINT": 16,
        }
    return compiled(kernel, {name: types[name] for name in kernel.arg_names if name in types}, constants, sm, folder)


def packed(variant: str, sm: int, folder: Path) -> Any:
    """As `attention`, by default with one query per row: the heads that share a key head are a tile."""
    kind, dim, rows = _sized(variant, rows=_REP)
    types = {"query": f"*{kind}", "codes": "*u8", "steps": "*fp16", "out": "*fp32", "levels": "*fp32", "first": "*i32"}
    types |= {"last": "*i32", "places": "*i64", "n_query": "i32", "span_stride": "i32", "scale": "fp32", "cap": "fp32"}
    dtype, dot = _KINDS[kind]
    constants = {
        "GROUPS": _HEADS, "REP": _REP, "DIM": dim, "WIDE": dim, "SOFTCAP": False, "DOT": dot, "HINT": 16,
        **packed_attention.tiles(dtype, dim, rows),
    }  # fmt: skip
    return compiled(packed_attention.attend_packed_kernel, {**types, "q_strides": _THREE}, constants, sm, folder)


def _sized(variant: str, rows: int = 8192) -> tuple[str, int, int]:
    kind, *sizes = variant.split()
    dim, rows = (*map(int, sizes), *(_DIM, rows)[len(sizes) :])
    return kind, dim, rows


def logits(kind: str, sm: int, folder: Path) -> Any:
    types = {"query": "*fp32", "low": "*bf16", "high": "*bf16", "out": "*fp32", "starts": "*i32"}
    types |= {"count": "i32", "total": "i32", "scale": "fp32"}
    strides = {"query_strides": _FOUR, "low_strides": _THREE, "high_strides": _THREE}
    constants = {
        "GROUPS": _HEADS, "REP": _REP, "DIM": _DIM, "STEP": block_scores.STEP, "BOUND": kind == "bound",
        "ROWS": block_scores.ROWS, "BLOCKS": block_scores.BLOCKS, "num_warps": block_scores.WARPS,
    }  # fmt: skip
    return compiled(block_scores.logits_kernel, {**types, **strides}, constants, sm, folder)


def gather(kind: str, sm: int, folder: Path) -> Any:
    source = {"bf16": "*bf16", "int8": "*i8", "fp8": "*fp8e4nv", "int4": "*u8"}[kind]
    types: dict[str, Any] = dict.fromkeys(("keys", "values"), source)
    types |= dict.fromkeys(("key_scale", "key_zero", "value_scale", "value_zero", "out_keys", "out_values"), "*bf16")
    types |= {"rows": "*i32", "cos": "*fp32", "sin": "*fp32", "table": "*i32", "slots": "i32"}
    types |= {"tiles": "*i32", "pieces": "*i64"}
    types |= dict.fromkeys(("key_strides", "value_strides"), (*_FOUR, "constexpr"))
    types |= dict.fromkeys(
        ("key_scale_strides", "key_zero_strides", "value_scale_strides", "value_zero_strides"), _FIVE
    )
    constants = {
        "SIZE": 16, "DIM": _DIM, "HALF": _DIM // 2, "WIDE": _DIM, "WIDE_HALF": _DIM // 2, "WIDE_REST": 0,
        "TOKENS": rope_gather.TOKENS, "INTERLEAVED": False, "BY_LAYER": False, "KEY_SCALED": kind != "bf16",
        "KEY_ZERO": kind != "bf16", "VALUE_SCALED": kind != "bf16", "VALUE_ZERO": kind == "int4",
        "PACKED": kind == "int4", "HINT": 16, "SCALE_HINT": 1,
        "num_warps": rope_gather.WARPS,
    }  # fmt: skip
    return compiled(rope_gather.gather_kernel, {**types, "out_strides": _FOUR}, constants, sm, folder)


def case(name: str, variant: str, sm: int, folder: Path) -> Any:
    if name == "gather":
        return gather(variant, sm, folder)
    if name == "packed":
        return packed(variant, sm, folder)
    return logits(variant, sm, folder) if name == "logits" else attention(name, variant, sm, folder)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    os.environ["TRITON_CACHE_DIR"] = str(where)
    print(json.dumps([case(name, variant, sm, where) for name, variant, sm in json.loads(sys.argv[2])]))
