"""What the standard suites do not ask: threads, cancelling, time-outs, keywords, messages."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_core.load import dumpd, dumps, loads
from langchain_core.messages import AIMessage, HumanMessage

from langchain_samkv import ChatSamKV
from langchain_samkv.answers import ChunkWriter, Reading, result_of
from samkv_rag import SamKV, SamKVEngine, SamKVError
from tests.integrations.langchain.conftest import ASKED, CHUNKS, roomy_model
from tests.models import byte_tokenizer

LONG = 4000


# -- making one ------------------------------------------------------------------------------------------------


def test_making_one_loads_nothing(tmp_path: Path) -> None:
    llm = ChatSamKV(model_name="no/such-model", kv_store=str(tmp_path / "kv"), keep=0.2, stop=["x"])
    assert (llm.model, llm.model_name, llm.stop) == ("no/such-model", "no/such-model", ["x"])
    assert not (tmp_path / "kv").exists()


def test_a_loaded_model_with_its_tokenizer() -> None:
    llm = ChatSamKV(model=roomy_model(), tokenizer=byte_tokenizer(chat=True), kv_store=":memory:", max_tokens=4)
    assert llm.invoke("Hello").usage_metadata["output_tokens"] == 4
    assert llm.engine.min_kept_tokens == 256 and llm.get_num_tokens("four") == 4


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_a_saved_model_is_made_again_unless_it_was_given_objects(tmp_path: Path, engine: SamKVEngine) -> None:
    llm = ChatSamKV(model="bundled", kv_store=str(tmp_path), keep=0.3, stop=["x"], namespace="ada")
    text = dumps(llm)
    again = loads(text, allowed_objects=[ChatSamKV], valid_namespaces=["langchain_samkv"])
    assert again.to_json() == llm.to_json() and again.asdict() == llm.asdict() and "secret" not in text
    assert (again.keep, again.stop, again.namespace) == (0.3, ["x"], "ada")
    for given in (ChatSamKV(engine=engine), ChatSamKV(model=roomy_model()), ChatSamKV(method=SamKV(keep=0.5))):
        assert dumpd(given)["type"] == "not_implemented"


def test_the_profile_says_what_the_model_can_do() -> None:
    named, loaded = ChatSamKV(model="no/such-model"), ChatSamKV(model=roomy_model(), tokenizer=byte_tokenizer())
    for llm in (named, loaded):
        assert llm.profile is not None and llm.profile["tool_calling"] and not llm.profile["image_inputs"]
    assert "max_input_tokens" not in named.profile and loaded.profile["max_input_tokens"] == 8192
    assert ChatSamKV(profile={"max_input_tokens": 9}).profile == {"max_input_tokens": 9}


def test_fields_reach_the_engine(engine: SamKVEngine) -> None:
    llm = ChatSamKV(engine=engine, method="reuse", max_tokens=4)
    engine.precompute(CHUNKS)
    assert llm.invoke(ASKED).response_metadata["samkv"]["method"] == "reuse"
    assert llm.invoke(ASKED, method="full").response_metadata["samkv"]["method"] == "full"
    assert llm._identifying_params["method"] == "'reuse'"


# -- keywords of one call --------------------------------------------------------------------------------------


def test_keywords_of_one_call(llm: ChatSamKV) -> None:
    assert llm.invoke("Hello", max_tokens=3).usage_metadata["output_tokens"] == 3
    sampled = [llm.invoke("Hello", temperature=1.5, seed=seed).text for seed in (1, 1, 2, 3)]
    assert sampled[0] == sampled[1] and len(set(sampled)) > 1
    assert llm.bind(max_tokens=2).invoke("Hello").response_metadata["finish_reason"] == "length"


def test_none_says_nothing_in_a_call_and_no_tokens_are_none_too_many(engine: SamKVEngine) -> None:
    engine.precompute(CHUNKS)
    llm = ChatSamKV(engine=engine, method="full", max_tokens=3)
    said = llm.invoke(ASKED, method=None, max_tokens=None, temperature=None)
    assert said.response_metadata["samkv"]["method"] == "full" and said.usage_metadata["output_tokens"] <= 3
    with pytest.raises(SamKVError, match="max_new_tokens must be"):
        llm.invoke(ASKED, max_tokens=0)


def test_an_answer_begins_with_a_word(engine: SamKVEngine) -> None:
    reading, writer = Reading("tiny", False), ChunkWriter(Reading("tiny", False))
    pieces = [chunk.message.content for piece in (" ", " Ola", " Brandt") for chunk in writer.write(piece)]
    assert pieces == ["Ola", " Brandt"]
    answer = replace(engine.generate("Hello", max_new_tokens=1), text="  Ola Brandt")
    assert result_of(answer, reading).generations[0].message.content == "Ola Brandt"


def test_the_fields_keep_belongs_to_the_fields_method(engine: SamKVEngine) -> None:
    engine.precompute(CHUNKS)
    engine.method = SamKV(rest="drop")
    llm = ChatSamKV(engine=engine, max_tokens=2, keep=0.3)

    def ratio(**keywords: Any) -> float:
        return float(llm.invoke(ASKED, **keywords).response_metadata["samkv"]["kept_ratio"])

    assert ratio(method="full") == 1.0  # the way to turn reuse off
    assert ratio() == ratio(method="samkv", keep=0.3) != ratio(method="samkv")
    assert ratio(keep=0.6) == pytest.approx(0.6, abs=0.02)


def test_all_stays_in_four_bits_from_the_second_token_on_where_no_method_is_named() -> None:
    llm = ChatSamKV(model=roomy_model(), tokenizer=byte_tokenizer(), kv_store=":memory:", min_kept_tokens=0)
    llm.engine.precompute(CHUNKS)

    def told(**keywords: Any) -> dict[str, Any]:
        return dict(llm.invoke(ASKED, **keywords).response_metadata["samkv"])

    longer, shorter = told(max_tokens=12, keep=0.3), told(max_tokens=1, keep=0.3)
    assert longer["kept_ratio"] == shorter["kept_ratio"] == 1
    assert shorter["packed_tokens"] == 0, "an answer that is shorter keeps all as it is"
    exact = longer["kept_tokens"] - longer["packed_tokens"]
    assert exact == int(0.3 * longer["chunk_tokens"]) // 4
    dropped = told(max_tokens=12, method=SamKV(keep=0.3, settle_at=8, rest="drop"))
    assert dropped["kept_ratio"] == pytest.approx(0.3, abs=0.02)
    assert longer["recomputed_tokens"] == dropped["recomputed_tokens"]


def test_stop_of_one_call_goes_before_the_fields(llm: ChatSamKV) -> None:
    text = llm.invoke("Hello", max_tokens=30).text
    stop = text[len(text) // 2]
    assert llm.invoke("Hello", max_tokens=30, stop=[stop]).text == text.partition(stop)[0]
    own = ChatSamKV(engine=llm.engine, max_tokens=30, stop=stop)
    assert own.invoke("Hello").text == text.partition(stop)[0]
    assert own.invoke("Hello", stop=["never said"]).text == text
    assert "".join(chunk.text for chunk in own.stream("Hello")) == text.partition(stop)[0]


def test_a_keyword_that_means_nothing_is_an_error(llm: ChatSamKV) -> None:
    with pytest.raises(SamKVError, match="does not know logit_bias; a call may have: .*max_tokens"):
        llm.invoke("Hello", logit_bias={})
    with pytest.raises(SamKVError, match="neither a folder nor a model"):
        llm.invoke("Hello", model="no/such-model")
    with pytest.raises(SamKVError, match="is a hub id or a folder"):
        llm.invoke("Hello", model=roomy_model())


# -- what comes back -------------------------------------------------------------------------------------------


def test_streamed_and_whole_answers_agree(llm: ChatSamKV) -> None:
    llm.invoke(ASKED)  # what the prompt begins with is known from now on
    whole = llm.invoke(ASKED)
    chunks = list(llm.stream(ASKED))
    full = chunks[0]
    for chunk in chunks[1:]:
        full = full + chunk
    assert (full.text, full.usage_metadata) == (whole.text, whole.usage_metadata)
    assert full.response_metadata.keys() == whole.response_metadata.keys()
    assert sum(chunk.usage_metadata is not None for chunk in chunks) == 1
    assert chunks[-1].chunk_position == "last" and whole.usage_metadata["input_token_details"]["cache_read"] > 0


def test_explain_shows_where_the_chunks_are(llm: ChatSamKV) -> None:
    plan = llm.explain(ASKED)
    assert [chunk.text for chunk in plan.chunks] == CHUNKS
    assert plan.question.text == "Where is the office?"


# -- many callers ----------------------------------------------------------------------------------------------


def test_a_batch_from_threads_is_what_single_calls_are(llm: ChatSamKV) -> None:
    questions = [[*ASKED, ("human", f"Number {n}?")] for n in range(4)]
    assert [a.text for a in llm.batch(questions)] == [llm.invoke(question).text for question in questions]


def test_errors_of_one_request_stay_its_own(llm: ChatSamKV) -> None:
    good, bad = llm.batch(["Hello", "x" * 9000], return_exceptions=True)
    assert isinstance(good, AIMessage) and isinstance(bad, SamKVError)


async def ticks_during(awaitable: Any) -> int:
    """How often the event loop came round while this was awaited."""
    task, count = asyncio.ensure_future(awaitable), 0
    while not task.done():
        await asyncio.sleep(0.005)
        count += 1
    await task
    return count


async def test_the_event_loop_goes_on(llm: ChatSamKV) -> None:
    async def streamed() -> None:
        async for _ in llm.astream("Hello", max_tokens=100):
            pass

    assert await ticks_during(llm.ainvoke("Hello", max_tokens=100)) > 10
    assert await ticks_during(streamed()) > 10


async def seconds_until_free(llm: ChatSamKV) -> float:
    started = time.monotonic()
    await llm.ainvoke("Hello", max_tokens=1)
    return time.monotonic() - started


@pytest.mark.parametrize("running", [0.2, 0], ids=["while it answers", "before it started"])
async def test_a_cancelled_call_frees_the_model(llm: ChatSamKV, running: float) -> None:
    task = asyncio.ensure_future(llm.ainvoke("Hello", max_tokens=LONG))
    await asyncio.sleep(running)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await seconds_until_free(llm) < 2


async def test_leaving_a_stream_frees_the_model(llm: ChatSamKV) -> None:
    for _ in llm.stream("Hello", max_tokens=LONG):
        break
    assert await seconds_until_free(llm) < 2
    stream = llm.astream("Hello", max_tokens=LONG)
    await anext(stream)
    await stream.aclose()
    assert await seconds_until_free(llm) < 2


async def test_a_time_out_frees_the_model(llm: ChatSamKV) -> None:
    slow = ChatSamKV(engine=llm.engine, max_tokens=LONG, timeout=0.3)
    with pytest.raises(TimeoutError, match="within 0.3 seconds"):
        slow.invoke("Hello")
    with pytest.raises(TimeoutError):
        list(slow.stream("Hello"))
    with pytest.raises(TimeoutError):
        await slow.ainvoke("Hello")
    with pytest.raises(TimeoutError):
        [chunk async for chunk in slow.astream("Hello")]
    assert await seconds_until_free(llm) < 2
    assert slow.invoke("Hello", timeout=None, max_tokens=2).usage_metadata["output_tokens"] == 2


async def test_waiting_for_others_counts_for_a_time_out() -> None:
    engine = SamKVEngine.from_pretrained(roomy_model(), byte_tokenizer(chat=True), ":memory:", max_batch=1)
    llm = ChatSamKV(engine=engine, max_tokens=2)
    first = llm.stream("Hello", max_tokens=LONG)
    next(first)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        await llm.ainvoke("Hello", timeout=0.3)
    assert time.monotonic() - started < 2
    first.close()


def test_the_output_of_several_prompts_names_the_model(llm: ChatSamKV) -> None:
    result = llm.generate([[HumanMessage("Where?")], [HumanMessage("When?")]])
    assert result.llm_output == {"model_name": "model"}
