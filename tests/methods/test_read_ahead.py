"""Entries on a disk are read while other work runs: the same answers as from memory, and the same counts."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from samkv_rag import ChunkKVStore, Reuse, SamKV
from samkv_rag.methods import Prepared, Run
from samkv_rag.methods.costs import Costs
from samkv_rag.methods.entries import READERS
from samkv_rag.methods.reads import ChunkReads, Read
from samkv_rag.model.cache import SlotLayer
from samkv_rag.store import DamagedEntry, StoredBlocks
from samkv_rag.store.quantise import KVForm
from samkv_rag.types import Selection
from tests import oracles
from tests.cases import METHODS, WIRINGS
from tests.methods.gates import every_wiring, prompted
from tests.model.recording import assert_same, entries, recording
from tests.models import adapter, tiny_engine
from tests.oracles import Prompted
from tests.store.samples import flip
from tests.waiting import SOON, wait_until

FORMS = ("model", "int8", "fp8", "int4")


@pytest.fixture(autouse=True)
def in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read layer by layer, as entries of real sizes are read in steps."""
    monkeypatch.setattr("samkv_rag.methods.entries.STEP_BYTES", 1)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Prompted]]:
    """The prompts of the gates, with their chunks in folders."""
    stored = {}
    for wiring in WIRINGS:
        store = ChunkKVStore(tmp_path_factory.mktemp(wiring))
        stored[wiring] = Prompted(oracles.stored_plan(adapter(wiring), store), adapter(wiring), store)
    yield stored
    for case in stored.values():
        case.store.close()


def ran(case: Prompted, method: Any) -> tuple[Prepared, Run]:
    run = Run(case.plan, case.adapter, case.store, oracles.ROOM)
    prepared = method.prepare(run)
    run.release()
    return prepared, run


def assert_equal(got: Prepared, want: Prepared) -> None:
    assert got.ids == want.ids
    assert (got.logits is None) == (want.logits is None)
    if got.logits is not None and want.logits is not None:
        assert torch.equal(got.logits, want.logits)
    if got.cache is not None and want.cache is not None:
        assert all(torch.equal(*pair) for pair in zip(entries(got), entries(want), strict=True))


def assert_alike(case: Prompted, memory: Prompted, method: Any) -> None:
    (got, run), (want, known) = ran(case, method), ran(memory, method)
    assert_equal(got, want)
    assert run.costs.scored_bytes == known.costs.scored_bytes
    assert run.entries.bytes_read >= known.entries.bytes_read


@every_wiring
def test_every_wiring_answers_from_a_disk_as_from_memory(on_disk: dict[str, Prompted], wiring: str) -> None:
    assert_alike(on_disk[wiring], prompted(wiring), SamKV(keep=0.4))


@pytest.mark.parametrize("wiring", ["llama", "gemma4-sharing"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_answers_from_a_disk_as_from_memory(
    on_disk: dict[str, Prompted], name: str, wiring: str
) -> None:  # fmt: skip
    assert_alike(on_disk[wiring], prompted(wiring), METHODS[name])


@pytest.mark.parametrize("wiring", ["llama", "gemma4"])
def test_a_recorded_pass_finds_all_that_it_reads(on_disk: dict[str, Prompted], wiring: str) -> None:
    case = on_disk[wiring]
    want = ran(prompted(wiring), SamKV(keep=0.4))[0]
    with recording(case.adapter) as passes:
        for _ in range(3):
            assert_same(ran(case, SamKV(keep=0.4))[0], want)
        assert passes.recordings > 0


@pytest.mark.parametrize("kv_dtype", FORMS)
def test_every_form_is_read_in_steps_as_at_once(tmp_path: Path, kv_dtype: str) -> None:
    case = prompted("llama")
    with ChunkKVStore(tmp_path) as folder:
        memory = ChunkKVStore(":memory:")
        for chunk in case.plan.chunks:
            made = case.adapter.ingest([""], [chunk.token_ids])[0]
            for store in (folder, memory):
                store.put(str(chunk.key), made, kv_dtype=kv_dtype)
        assert_alike(*(Prompted(case.plan, case.adapter, store) for store in (folder, memory)), SamKV(keep=0.4))


@pytest.mark.parametrize("method", [Reuse(), SamKV(keep=0.4)], ids=["reuse", "samkv"])
def test_the_first_layers_are_computed_before_the_last_ones_are_there(
    on_disk: dict[str, Prompted], method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here, reading layers above the first waits until one layer has been computed."""
    case, computed = on_disk["llama"], threading.Event()
    read, update = case.store.read_stored, SlotLayer.update

    def late(key: str, blocks: Any, layers: range, *how: Any) -> StoredBlocks:
        assert layers.start == 0 or computed.wait(SOON), "nothing runs while this is read"
        return read(key, blocks, layers, *how)

    def told(self: SlotLayer, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        out = update(self, *args, **kwargs)
        computed.set()
        return out

    monkeypatch.setattr(case.store, "read_stored", late)
    monkeypatch.setattr(SlotLayer, "update", told)
    assert_equal(ran(case, method)[0], ran(prompted("llama"), method)[0])


def test_the_upper_layers_are_read_while_the_question_looks(
    on_disk: dict[str, Prompted], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, asked = on_disk["llama"], list[range]()
    read = case.store.read_stored
    monkeypatch.setattr(case.store, "read_stored", lambda *how: (asked.append(how[2]), read(*how))[1])
    run = Run(case.plan, case.adapter, case.store, oracles.ROOM)
    run.read_ahead(1)
    run.question_attention(Selection.all_of(case.plan).kept, [1])
    wait_until(lambda: run.entries.bytes_read == 2 * run.costs.scored_bytes)  # the look took two of four layers
    assert sorted({layers.start for layers in asked}) == [0, 1, 2, 3]
    assert len(asked) == len(case.plan.chunks) * case.adapter.shape.layers


def test_what_nobody_needs_any_more_is_not_read(
    on_disk: dict[str, Prompted], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    case, go, begun = on_disk["llama"], threading.Event(), list[str]()
    read = case.store.read_stored

    def slow(key: str, *how: Any) -> StoredBlocks:
        begun.append(key)
        assert go.wait(SOON)
        return read(key, *how)

    monkeypatch.setattr(case.store, "read_stored", slow)
    run = Run(case.plan, case.adapter, case.store, oracles.ROOM)
    run.read_ahead(3)
    wait_until(lambda: len(begun) == READERS)
    readers = run.entries._readers
    assert readers is not None

    def let_go() -> None:
        wait_until(lambda: readers._work_queue.qsize() <= 1)  # what was waiting is gone
        go.set()

    threading.Thread(target=let_go).start()
    run.release()
    assert len(begun) == READERS < len(case.plan.chunks) * case.adapter.shape.layers
    assert len(run.entries._sizes) == len(begun)


def damage(folder: Path, key: str) -> None:
    """Change the last byte of an entry's keys and values: in the last block of the last layer."""
    path = next(path for path in folder.rglob(f"{key}*") if "kv" in path.name)
    flip(path, 8 * (path.stat().st_size - 1))


@pytest.mark.parametrize("method", [Reuse(), SamKV(keep=0.4)], ids=["reuse", "samkv"])
def test_damage_of_the_last_layer_is_found_before_anything_is_made_of_it(tmp_path: Path, method: Any) -> None:
    with ChunkKVStore(tmp_path) as store:
        case = Prompted(oracles.stored_plan(adapter("llama"), store), adapter("llama"), store)
        damage(tmp_path, str(case.plan.chunks[1].key))
        with pytest.raises(DamagedEntry, match="layer 3"):
            case.prepare(method)


def test_an_answer_that_finds_it_reports_a_miss_and_leaves_no_thread(tmp_path: Path) -> None:
    chunks = ["The quick brown fox jumps over the lazy dog. " * 3, "Pack my box with five dozen jugs. " * 3]
    with ChunkKVStore(tmp_path) as store:
        engine = tiny_engine(store=store)
        engine.answer("What jumps?", chunks, max_new_tokens=1)
        sound, alone = engine.answer("What jumps?", chunks, max_new_tokens=8), threading.active_count()
        damage(tmp_path, next(iter(store.keys())))
        found = engine.answer("What jumps?", chunks, max_new_tokens=8)
        healed = engine.answer("What jumps?", chunks, max_new_tokens=8)
    assert (len(sound.report.misses), len(found.report.misses), len(healed.report.misses)) == (0, 1, 0)
    assert healed.token_ids == sound.token_ids and threading.active_count() == alone


def test_a_failure_keeps_no_cache_alive(tmp_path: Path) -> None:
    """The workspace that prompts are prepared in can be lent again at once, not only when the collector has run."""
    with ChunkKVStore(tmp_path) as store:
        case = Prompted(oracles.stored_plan(adapter("llama"), store), adapter("llama"), store)
        damage(tmp_path, str(case.plan.chunks[1].key))
        gc.disable()
        try:
            with recording(case.adapter) as passes:
                for method in (SamKV(keep=0.4), Reuse()):
                    run = Run(case.plan, case.adapter, store, oracles.ROOM)
                    with suppress(DamagedEntry):  # pytest.raises would keep the traceback
                        method.prepare(run)
                        pytest.fail("it was not found")
                    run.release()
                    assert passes._workspace is not None and not passes._workspace.in_use
        finally:
            gc.enable()


def test_without_threads_to_be_had_it_reads_itself(
    on_disk: dict[str, Prompted], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """As at the interpreter's exit, while a thread of the caller's is still answering."""

    def none(*_: Any) -> Any:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor.submit", none)
    assert_equal(ran(on_disk["llama"], SamKV(keep=0.4))[0], ran(prompted("llama"), SamKV(keep=0.4))[0])


def test_an_entry_that_changes_its_form_meanwhile_is_not_made_anything_of() -> None:
    reads = ChunkReads("key")
    for start, form in enumerate((FORM, KVForm("fp16", torch.float32, 1, 1))):
        reads.add(Read([0], range(start, start + 1), lambda form=form: StoredBlocks(form, DATA[:1, :1])))  # type: ignore[misc]
    with pytest.raises(DamagedEntry, match="another form"):
        reads.joined([0], range(2))


def test_little_is_read_at_once(on_disk: dict[str, Prompted], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samkv_rag.methods.entries.STEP_BYTES", 1 << 20)
    case, asked = on_disk["llama"], list[range]()
    read = case.store.read_stored
    monkeypatch.setattr(case.store, "read_stored", lambda *how: (asked.append(how[2]), read(*how))[1])
    ran(case, Reuse())
    assert asked == [range(4)] * len(case.plan.chunks)


STACK, BLOCKS = 6, 5
DATA = torch.arange(STACK * BLOCKS * 3).view(STACK, BLOCKS, 3)
FORM = KVForm("fp32", torch.float32, 1, 1)
asks = st.tuples(
    st.lists(st.integers(0, BLOCKS - 1), min_size=1, unique=True).map(sorted),
    st.integers(0, STACK - 1), st.integers(1, STACK),
).map(lambda ask: (ask[0], range(ask[1], max(ask[1] + 1, ask[2]))))  # fmt: skip


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(asks, min_size=1, max_size=6))
def test_whatever_is_asked_in_whatever_order_is_read_once(asked: list[tuple[list[int], range]]) -> None:
    reads, seen = ChunkReads("key"), torch.zeros(STACK, BLOCKS, dtype=torch.long)
    for blocks, layers in asked:
        for missing, deep in reads.missing(blocks, layers.stop):
            seen[deep.start : deep.stop, missing] += 1
            part = StoredBlocks(FORM, DATA[deep.start : deep.stop, missing])
            reads.add(Read(missing, deep, lambda part=part: part))  # type: ignore[misc]
        assert torch.equal(reads.joined(blocks, layers).data, DATA[layers.start : layers.stop, blocks])
        assert int(seen.max()) == 1 and bool(seen[: layers.stop, blocks].all())


def test_a_stage_within_another_is_charged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 3.0, 3.5, 4.0, 10.0])
    monkeypatch.setattr("samkv_rag.methods.costs.time.perf_counter", lambda: next(clock))
    costs = Costs(torch.device("cpu"))
    with costs.stage("recompute"):
        for _ in range(2):
            with costs.stage("load"):
                pass
    assert dict(costs.seconds) == {"load": 2.5, "recompute": 7.5}
