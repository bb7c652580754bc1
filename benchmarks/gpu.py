"""Everything that is measured on a GPU, in one call and within `--seconds`. `python -m benchmarks.gpu --out FOLDER`

Kernels against their references; time to the first token of all systems, stage by stage for the middle size; decoding;
memory; the answers that fit a budget. The model has random weights, made where it runs, and must pass the exactness
gate. Chunk caches are in the device's memory (`ChunkKVStore(device=...)`); "tiers" says what they cost on the host.

Parts run in order of priority, the long ones last. Each writes its rows to `--out` as soon as it has them, in the form
of the benchmark that it is taken from; one that fails says why, and the next begins; one that needs more seconds than
are left is skipped. `--device cpu --model tiny --tokens 64 128 256` shows that all of it runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import decode, kernels, memory, profile, serving, stages, tiers, ttft
from benchmarks.bench import Bench, in_turns_within
from benchmarks.harness import wait
from benchmarks.probe import Reading, gauge_of
from benchmarks.rows import write_rows
from benchmarks.systems import METHODS, first_token
from samkv_rag.model.steps import PLAIN_STEPS
from samkv_rag.store import ChunkKVStore
from samkv_rag.types import ChunkKV

SYSTEMS = ("full", "reuse", "cacheblend", "samkv", "samkv 1/3", "samkv 1/10", "samkv drop")
SERVED = {"full cache": "full", "kept 15 %": "samkv drop", "all, int4": "samkv"}
"""Systems by the caches that they leave."""
NAMES = ("kernels", "ttft", "stages", "profile", "memory", "decode", "tiers", "serving")
GIB = 2**30


def every_kernel(bench: Bench) -> None:
    """Kernels against their references; if one differs, the others are still measured."""
    for case in kernels.every_case(torch.device(bench.device)):
        try:
            write_rows("kernels", kernels.measure(case, 20), bench.out)
        except (Exception, SystemExit) as error:
            print(f"{case.name}: {type(error).__name__}: {error}")


def first_tokens(bench: Bench, tokens: int, seconds: float) -> None:
    """Time to the first token of stock transformers and of all systems, and of these with recorded passes."""
    plan, store = bench.prompt(tokens)
    ways: dict[str, Any] = {"stock": partial(ttft.stock, bench.adapter, plan)}
    ways |= {name: partial(first_token, bench.adapter, store, plan, METHODS[name]) for name in SYSTEMS}
    if bench.passes is not None:
        ways |= {f"{name}, recorded": partial(bench.recorded, ways[name]) for name in SYSTEMS[1:]}
        for name in SYSTEMS[1:]:
            ways[f"{name}, recorded"]()  # sizes are recorded when they recur: in the warm-up round
    seen = in_turns_within(ways, min(seconds, bench.left()), 9)
    bench.save("ttft", ttft.rows(bench.label, tokens, seen, bench.device), 14)


def every_stage(bench: Bench, tokens: int) -> None:
    """Time to the first token, pass by pass, against floors measured in the same run."""
    plan, store = bench.prompt(tokens)
    rates = stages.Rates.measured(bench.adapter, tokens)
    bench.tidy()
    ways = {name: partial(stages.clock, bench.adapter, store, plan, METHODS[name], rates) for name in SYSTEMS}
    bench.save("stages", stages.rows(bench.label, tokens, rates, in_turns_within(ways, 8, 5), bench.device), 18)


def served(bench: Bench, tokens: int) -> serving.Bench:
    """A bench that asks about the same prompt again and again."""
    plan, store = bench.prompt(tokens)
    return serving.Bench(bench.adapter, store, plan, bench.budget, bench.new)


def decoding(bench: Bench, tokens: int, answers: int) -> None:
    """Milliseconds per token of `answers` answers decoded together, over whole caches, kept ones and ones in four bits,
    launched step by step by the host and, on a GPU, recorded."""
    loop, asked, seen = bench.adapter.loop, served(bench, tokens), decode.Seen()
    warm, before = min(PLAIN_STEPS + 2, bench.new - 2), loop.recorder  # the first of these packs
    for cache, system in SERVED.items():
        said = []
        for order in ("together", "recorded")[: 1 + (bench.device == "cuda")]:
            loop.recorder = None
            if order == "recorded":
                loop.record()
            begun = [asked.begin(METHODS[system], number).decoding for number in range(answers)]
            for _ in range(warm):
                loop.step(begun)
            wait(bench.adapter.device)
            seen[cache, order] = [decode.finish(bench.adapter, [begun], time.perf_counter)]
            said.append([row.result() for row in begun])
            del begun
        print(f"{cache}: {decode.alike(said[0], said[-1])} of {answers * bench.new} tokens alike, recorded or not")
        if loop.recorder is not None:
            print(f"recordings: {loop.recorder.recordings}; {loop.recorder.reason or 'nothing in the way'}")
    loop.recorder = before
    rows = decode.table(tokens, answers, bench.new - 1 - warm, "wall", seen, bench.device, bench.label)
    bench.save("decode", rows, 10)


def memory_of(bench: Bench, tokens: int) -> None:
    """What an answer takes besides model and store, at its peak and while it is written."""
    asked, gauge, seen = served(bench, tokens), gauge_of(bench.device), dict[str, list[Reading]]()
    for system in SYSTEMS:
        bench.tidy()
        gauge.restart()
        before = gauge.now()
        begun = asked.begin(METHODS[system], 0)
        held = gauge.now()
        seen[system] = [Reading(before, max(1, gauge.peak() - before), max(1, held - before), "the same")]
        del begun
    bench.save("memory", memory.rows(tokens, seen, bench.device, bench.label), 12)


def by_tier(bench: Bench, tokens: int, forms: Sequence[str]) -> None:
    """Time to the first token with the chunk caches on the device, on the host, and in these forms on a disk, with
    recordings where they are possible: all tiers have the same sizes, which therefore recur in the warm-up round."""
    (plan, near), far = bench.prompt(tokens), ChunkKVStore(":memory:")
    held = {
        str(chunk.key): ChunkKV(near.summary(str(chunk.key)), near.read_blocks(str(chunk.key))) for chunk in plan.chunks
    }
    for key, chunk in held.items():
        far.put(key, chunk)
    ways: dict[str, Any] = {"none model full": partial(first_token, bench.adapter, near, plan, METHODS["full"])}
    with tempfile.TemporaryDirectory() as root:
        places = [tiers.Place("device", "model", near), tiers.Place("host", "model", far)]
        for form in forms:
            with ChunkKVStore(Path(root) / form) as store:
                for key, chunk in held.items():
                    store.put(key, chunk, kv_dtype=form)
            places += [tiers.Place(tier, form, Path(root) / form) for tier in ("warm", "cold")]
        del held
        for place in places:
            for name in ("reuse", "cacheblend", "samkv"):
                way = partial(place.ask, bench.adapter, plan, METHODS[name])
                ways[f"{place.tier} {place.kv_dtype} {name}"] = way
        timed = bench.recorded(partial(in_turns_within, ways, 8, 5))
    cases = {tiers.case_of(name): found for name, found in timed.items()}
    bench.save("tiers", tiers.rows(bench.label, tokens, cases, bench.device), 11)


def within_a_budget(bench: Bench, tokens: int) -> None:
    """How many answers fit, and tokens per second, with recordings where they are possible."""
    asked = served(bench, tokens)
    seen = bench.recorded(partial(serving.measure, asked, list(SERVED.values()), 1, 48, 1))
    bench.save("serving", serving.rows(bench.label, tokens, asked, seen, bench.device), 14)


def one_answer(bench: Bench, tokens: int) -> None:
    """Where the time of one prepared answer goes, operation by operation."""
    plan, store = bench.prompt(tokens)
    for system in ("samkv", "samkv 1/10"):
        profile.profiled(bench.adapter, store, plan, system, bench.out)
    if bench.passes is not None:
        bench.recorded(partial(first_token, bench.adapter, store, plan, METHODS["samkv"]))
        bench.recorded(partial(profile.profiled, bench.adapter, store, plan, "samkv", bench.out, ", recorded"))
        print(f"recordings: {bench.passes.recordings}; {bench.passes.reason or 'nothing in the way'}")


Part = tuple[str, float, Callable[[Bench], None]]


def parts(sizes: Sequence[int]) -> list[Part]:
    """Name, seconds needed, and function of each part; the last size comes late, since it takes longest."""
    *short, long = sizes
    middle = short[-1] if short else long
    return [
        ("kernels", 15.0, every_kernel),
        *(("ttft", 10.0, partial(first_tokens, tokens=tokens, seconds=12)) for tokens in short),
        ("stages", 12.0, partial(every_stage, tokens=middle)),
        ("profile", 6.0, partial(one_answer, tokens=middle)),
        ("memory", 4.0, partial(memory_of, tokens=middle)),
        ("decode", 6.0, partial(decoding, tokens=middle, answers=1)),
        ("ttft", 35.0 if short else 0.0, partial(first_tokens, tokens=long, seconds=30)),
        ("tiers", 25.0, partial(by_tier, tokens=sizes[0], forms=("model", "int8", "int4"))),
        ("tiers", 8.0, partial(by_tier, tokens=middle, forms=())),
        ("decode", 20.0, partial(decoding, tokens=middle, answers=8)),
        ("serving", 25.0, partial(within_a_budget, tokens=middle)),
    ]


def attempt(bench: Bench, part: Part) -> bool:
    """Run one part, if there is time, and print what goes wrong; returns False if it failed."""
    name, needed, do = part
    if bench.left() < needed:
        print(f"-- {name}: left out, {bench.left():.0f} s are left and it needs {needed:.0f}")
        return True
    print(f"-- {name}, {bench.left():.0f} s left", flush=True)
    try:
        do(bench)
    except (Exception, SystemExit):
        traceback.print_exc(file=sys.stdout)
        return False
    finally:
        bench.tidy()
        sys.stdout.flush()
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--model", default="8b", choices=["8b", "8b-compiled", "random", "tiny"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[5120, 16384, 65536], help="sizes, shortest first")
    parser.add_argument("--seconds", type=float, default=140, help="when to be done")
    parser.add_argument("--parts", nargs="+", choices=NAMES, help="only these")
    parser.add_argument("--new", type=int, default=34, help="tokens of a decoded answer")
    parser.add_argument("--budget", type=float, default=16, help="GiB of keys and values for `serving`")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--out", type=Path, required=True, help="the folder for the rows")
    options = parser.parse_args()
    stop = time.perf_counter() + options.seconds
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    budget = int(options.budget * GIB)
    bench = Bench(options.model, options.device, options.out, stop, options.new, budget)
    chosen = options.parts or NAMES[options.device == "cpu" :]
    wanted = [part for part in parts(options.tokens) if part[0] in chosen]
    failed = [part[0] for part in wanted if not attempt(bench, part)]
    print(f"failed: {', '.join(failed) or 'none'}; {bench.left():.0f} s left")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
