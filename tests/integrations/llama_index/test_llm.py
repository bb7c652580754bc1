"""The LLM class: what LlamaIndex asks of one, in all eight verbs."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from typing import Any

import pytest
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole
from llama_index.core.llms.function_calling import FunctionCallingLLM

from llama_index.llms.samkv import SamKVLLM
from samkv_rag import SamKV, SamKVError
from samkv_rag.prompt.template import Conversation
from tests.integrations.llama_index.kit import QUESTION, TEXTS, Recorder, make_engine, make_llm

PROMPT = f"{TEXTS[0]}\n\n{TEXTS[1]}\n\n{QUESTION}"
MESSAGES = [ChatMessage(role="system", content=TEXTS[0]), ChatMessage(role="user", content=PROMPT)]


def respond(llm: SamKVLLM, verb: str, **kwargs: Any) -> tuple[str, dict[str, Any], list[str]]:
    """(text, raw, deltas) of any of the eight verbs."""
    given: Any = MESSAGES if "chat" in verb else PROMPT
    call = getattr(llm, verb)
    if verb.startswith("a"):
        return asyncio.run(_arespond(call, given, "stream" in verb, kwargs))
    chunks = list(call(given, **kwargs)) if "stream" in verb else [call(given, **kwargs)]
    return _text(chunks[-1]), chunks[-1].raw, [chunk.delta or "" for chunk in chunks]


async def _arespond(call: Any, given: Any, streams: bool, kwargs: Any) -> tuple[str, dict[str, Any], list[str]]:
    made = await call(given, **kwargs)
    chunks = [chunk async for chunk in made] if streams else [made]
    return _text(chunks[-1]), chunks[-1].raw, [chunk.delta or "" for chunk in chunks]


def _text(response: Any) -> str:
    return response.text if hasattr(response, "text") else response.message.content or ""


# Pieces are whole words: random letters make some early on, while the model's greedy answer is one word.
LONG = {"max_new_tokens": 4000, "temperature": 5.0, "seed": 1}

VERBS = ["complete", "stream_complete", "acomplete", "astream_complete", "chat", "stream_chat", "achat", "astream_chat"]


def test_it_is_an_llm_of_the_framework() -> None:
    names = [base.__name__ for base in SamKVLLM.__mro__]
    assert BaseLLM.__name__ in names and FunctionCallingLLM.__name__ in names
    assert SamKVLLM.class_name() == "SamKVLLM"


def test_constructing_one_loads_and_creates_nothing(tmp_path: Any) -> None:
    llm = SamKVLLM(model_name="nobody/nothing", kv_store=tmp_path / "kv")
    assert not (tmp_path / "kv").exists()
    assert llm.to_payload()["model_name"] == "nobody/nothing"
    assert SamKVLLM.from_dict(llm.to_dict()).kv_store == str(tmp_path / "kv")


def test_metadata_comes_from_the_config_without_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make_llm()
    monkeypatch.setattr("samkv_rag.model.loading.ModelAdapter", None)
    metadata = llm.metadata
    assert (metadata.context_window, metadata.num_output) == (8192, 6)
    assert metadata.is_chat_model and metadata.is_function_calling_model
    assert make_llm(llm.engine, context_window=500).metadata.context_window == 500


def test_unknown_fields_and_keywords_are_refused() -> None:
    with pytest.raises(SamKVError, match="has no max_token; it has: .*max_new_tokens"):
        SamKVLLM(max_token=3)
    with pytest.raises(SamKVError, match="Unknown keywords: temprature.*max_tokens"):
        make_llm().complete("x", temprature=1)
    with pytest.raises(SamKVError, match="no method 'nosuch'"):
        make_llm().complete("x", method="nosuch")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_gives_the_same_answer(llm: SamKVLLM, verb: str) -> None:
    llm.precompute(TEXTS)
    text, raw, deltas = respond(llm, verb)
    assert text == respond(llm, "chat" if "chat" in verb else "complete")[0]
    assert "stream" not in verb or "".join(deltas) == text
    assert raw["usage"]["completion_tokens"] == 6
    assert raw["usage"]["prompt_tokens"] == raw["samkv"]["prompt_tokens"]
    assert raw["samkv"]["chunk_tokens"] > 0 and raw["samkv"]["misses"] == ()


@pytest.mark.parametrize("verb", VERBS)
def test_keywords_of_a_call_are_honoured(llm: SamKVLLM, verb: str) -> None:
    llm.precompute(TEXTS)
    recorder = Recorder(llm.engine)
    sampling = {"temperature": 0.8, "top_p": 0.9, "top_k": 9, "seed": 4}
    respond(llm, verb, max_tokens=3, stop="zz", method="full", question="Q?", **sampling)
    assert recorder.asked[0].options == {
        "max_new_tokens": 3, "stop": ["zz"], "method": "full", "question": "Q?", **sampling,
    }  # fmt: skip
    answer = recorder.asked[0].answer
    assert len(answer.token_ids) == 3 and answer.report.method == "full"


@pytest.mark.parametrize("verb", VERBS)
def test_stop_texts_end_the_answer(llm: SamKVLLM, verb: str) -> None:
    whole = respond(llm, verb, max_new_tokens=12)[0]
    stop = next(letter for letter in whole[2:] if letter.isascii())
    text, _, deltas = respond(llm, verb, max_new_tokens=12, stop=[stop])
    assert text == whole[: whole.index(stop)]
    assert "stream" not in verb or "".join(deltas) == text


def test_a_seed_repeats_a_sample(llm: SamKVLLM) -> None:
    first, again = (llm.complete(QUESTION, temperature=1.0, seed=3).text for _ in range(2))
    assert first == again != llm.complete(QUESTION, temperature=1.0, seed=4).text


def test_fields_are_the_defaults_and_keep_belongs_to_its_method() -> None:
    engine = make_engine()
    recorder = Recorder(engine)
    llm = make_llm(engine, method="samkv", keep=0.5, stop="end", temperature=0.0)
    llm.complete("one")
    llm.complete("two", method="full")
    llm.complete("three", method="samkv", keep=0.7)
    ours, full, other = (asked.options for asked in recorder.asked)
    assert (ours["method"], ours["keep"], ours["stop"]) == ("samkv", 0.5, ["end"])
    assert "keep" not in full and other["keep"] == 0.7
    assert make_llm(engine, method=SamKV(keep=0.9)).complete("four").raw["samkv"]["method"] == "samkv"


def test_what_stays_is_settled_within_the_answer_where_no_method_is_named() -> None:
    assert SamKVLLM(kv_store=":memory:").engine.method == SamKV()
    assert SamKVLLM(kv_store=":memory:", method=SamKV()).engine.method == SamKV()
    engine = make_engine()
    assert make_llm(engine).engine.method is engine.method, "a given engine has its own"


def test_a_method_is_its_objects_own_whoever_made_the_engine() -> None:
    full = SamKVLLM(kv_store=":memory:", method="full")
    assert full.engine.method.name == "full"
    for llm in (full.model_copy(update={"method": None}), full.model_copy(update={"method": "samkv"})):
        assert llm.engine is full.engine and llm._options({})["method"] == SamKV()
        assert llm._options({"method": "samkv"})["method"] == SamKV()
    own = full.model_copy(update={"method": SamKV(keep=0.3)})
    assert own._options({"method": "samkv"})["method"] == own._options({"method": None})["method"] == SamKV(keep=0.3)
    assert full._options({"method": "reuse"})["method"].name == "reuse"


def test_an_empty_question_is_none(llm: SamKVLLM) -> None:
    recorder = Recorder(llm.engine)
    llm.complete(QUESTION, question="")
    assert "question" not in recorder.asked[0].options


def test_complete_asks_a_chat_model_in_one_message() -> None:
    engine = make_engine()
    recorder = Recorder(engine)
    make_llm(engine).complete("A")
    make_llm(engine).complete("A", formatted=True)
    make_llm(engine, is_chat_model=False).complete("A")
    make_llm(engine, completion_to_prompt=lambda prompt: f"<{prompt}>").complete("A")
    make_llm(engine, is_chat_model=False).chat([ChatMessage(role="user", content="A")])
    assert [asked.prompt for asked in recorder.asked] == [
        Conversation([{"role": "user", "content": "A"}]), "A", "A", "<A>", "user: A\nassistant: ",
    ]  # fmt: skip


def test_roles_are_mapped_and_neighbours_merged(llm: SamKVLLM) -> None:
    recorder = Recorder(llm.engine)
    roles = [MessageRole.SYSTEM, MessageRole.DEVELOPER, MessageRole.USER, MessageRole.USER, MessageRole.MODEL]
    llm.chat([ChatMessage(role=role, content=role.value) for role in roles] + [ChatMessage(content="last")])
    assert recorder.asked[0].prompt.messages == [
        {"role": "system", "content": "system\n\ndeveloper"}, {"role": "user", "content": "user\n\nuser"},
        {"role": "assistant", "content": "model"}, {"role": "user", "content": "last"},
    ]  # fmt: skip
    with pytest.raises(SamKVError, match="image block"):
        llm.chat([ChatMessage(role="user", blocks=[ImageBlock(image=b"x")])])


@pytest.mark.parametrize("verb", ["acomplete", "achat", "astream_complete", "astream_chat"])
def test_the_event_loop_turns_during_an_answer(llm: SamKVLLM, verb: str) -> None:
    """A call that blocked the loop would allow no tick; the engine is held up so that there is time for some."""

    async def ticks() -> int:
        count, given = 0, MESSAGES if "chat" in verb else PROMPT

        async def ask() -> None:
            made = await getattr(llm, verb)(given)
            if "stream" in verb:
                async for _ in made:
                    pass

        task = asyncio.create_task(ask())
        llm.engine._turn.__enter__()
        while count < 10:
            await asyncio.sleep(0.01)
            count += 1
        assert not task.done()
        llm.engine._turn.__exit__(None, None, None)
        await task
        return count

    llm.load()
    assert asyncio.run(asyncio.wait_for(ticks(), 60)) == 10


def test_a_cancelled_call_frees_the_model(llm: SamKVLLM) -> None:
    async def cancel() -> float:
        task = asyncio.create_task(llm.acomplete(PROMPT, max_new_tokens=4000))
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        start = time.perf_counter()
        await llm.acomplete("short", max_new_tokens=1)
        return time.perf_counter() - start

    llm.load()
    assert asyncio.run(cancel()) < 5.0
    assert llm.stats().answers == 1


@pytest.mark.parametrize("verb", ["stream_complete", "stream_chat"])
def test_a_closed_stream_stops_decoding(llm: SamKVLLM, verb: str) -> None:
    recorder = Recorder(llm.engine)
    stream = getattr(llm, verb)(MESSAGES if "chat" in verb else PROMPT, **LONG)
    next(stream)
    stream.close()
    assert recorder.asked[0].answer.finish_reason == "cancelled"


@pytest.mark.parametrize("verb", ["astream_complete", "astream_chat"])
def test_a_closed_async_stream_stops_decoding(llm: SamKVLLM, verb: str) -> None:
    recorder = Recorder(llm.engine)

    async def begin() -> None:
        stream = await getattr(llm, verb)(MESSAGES if "chat" in verb else PROMPT, **LONG)
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(begin())
    assert recorder.asked[0].answer.finish_reason == "cancelled"


def test_errors_of_the_engine_reach_the_caller(llm: SamKVLLM) -> None:
    too_long = "long " * 3000
    for verb in ("complete", "stream_complete"):
        with pytest.raises(SamKVError, match="retrieve fewer or shorter chunks"):
            list(getattr(llm, verb)(too_long))

    async def ask() -> None:
        with pytest.raises(SamKVError, match="retrieve fewer"):
            await llm.acomplete(too_long)
        with pytest.raises(SamKVError, match="retrieve fewer"):
            async for _ in await llm.astream_complete(too_long):
                pass

    asyncio.run(ask())


def test_copies_share_the_engine_and_only_a_named_model_is_pickled(llm: SamKVLLM) -> None:
    assert copy.deepcopy(llm).engine is llm.engine
    with pytest.raises(SamKVError, match="name its model"):
        pickle.dumps(llm)
    again = pickle.loads(pickle.dumps(SamKVLLM(kv_store=":memory:", keep=0.3)))
    assert (again.kv_store, again.keep) == (":memory:", 0.3)


def test_a_copy_with_another_namespace_has_an_engine_of_its_own() -> None:
    llm = SamKVLLM(kv_store=":memory:")
    other = llm.model_copy(update={"namespace": "other"})
    assert (llm.engine.namespace, other.engine.namespace) == ("default", "other")
    assert llm.model_copy(update={"temperature": 0.5}).engine is llm.engine


def test_a_given_engine_serves_no_other_namespace(llm: SamKVLLM) -> None:
    with pytest.raises(SamKVError, match="has namespace='default', not 'other'"):
        _ = llm.model_copy(update={"namespace": "other"}).engine
    with pytest.raises(SamKVError, match="has namespace='default', not 'other'"):
        _ = SamKVLLM.from_engine(llm.engine, namespace="other").engine
