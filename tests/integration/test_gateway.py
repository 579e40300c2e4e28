"""The gateway as its users meet it: OpenAI's own client and LangChain's, unchanged, over HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
import torch
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from starlette.applications import Starlette
from starlette.routing import Mount
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from fedsea_mq.cli.bench.streams import GatewayStreams, closed_loop
from fedsea_mq.errors import ConfigError, EndpointUnavailable, KeyFileError, PlaintextRefused
from fedsea_mq.model.chat import chat_tokens
from fedsea_mq.model.checkpoint import Checkpoint
from fedsea_mq.model.lora import LoraSettings
from fedsea_mq.settings import Settings
from nodes.gateway import GatewayNode, create_app
from tests.adapters import make_adapter, with_adapter
from tests.integration.gateways import ANSWER, ASKED, PASSAGE, SAID, Gateway, gateway
from tests.integration.systems import running, until
from tests.integration.test_generation import oracle

pytestmark = pytest.mark.asyncio(loop_scope="module")
EMBEDDED = Checkpoint.open("embedded")
LONG = {"extra_body": {"ignore_eos": True}, "max_tokens": 1000}


@pytest.fixture(scope="module")
def unsplit() -> Any:
    """The embedded model, whole."""
    return AutoModelForCausalLM.from_pretrained(EMBEDDED.folders[0], dtype=torch.float32).eval()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up() -> AsyncIterator[Gateway]:
    async with gateway() as running_gateway:
        yield running_gateway


def text_of(tokens: list[int]) -> str:
    return str(EMBEDDED.tokenizer.decode(tokens, skip_special_tokens=True))


async def streamed(chunks: Any) -> tuple[list[str], list[str | None], Any]:
    """The text of each choice, why each ended, and the usage."""
    texts, ends, usage = dict[int, str](), dict[int, str | None](), None
    async for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            said = choice.delta.content if hasattr(choice, "delta") else choice.text
            texts[choice.index] = texts.get(choice.index, "") + (said or "")
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    return [texts[i] for i in sorted(texts)], [ends[i] for i in sorted(ends)], usage


async def test_a_chat_says_what_the_unsplit_model_says(up: Gateway, unsplit: Any) -> None:
    prompt = chat_tokens(EMBEDDED.tokenizer, SAID)
    wanted = oracle(unsplit, prompt, 12)
    whole = await up.chat(messages=SAID, max_completion_tokens=12)
    assert whole.choices[0].message.content == text_of(wanted).lstrip()
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": len(prompt),
        "completion_tokens": 12,
        "total_tokens": len(prompt) + 12,
    }
    chunks = await up.chat(
        messages=SAID, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    texts, ends, usage = await streamed(chunks)
    assert (texts, ends) == ([whole.choices[0].message.content], ["length"])
    assert usage == whole.usage


async def test_a_completion_says_what_the_unsplit_model_says(up: Gateway, unsplit: Any) -> None:
    texts = [PASSAGE, "Tobette comes from"]
    ids = [list(EMBEDDED.tokenizer(text)["input_ids"]) for text in texts]
    wanted = [text_of(oracle(unsplit, prompt, 8)).strip() for prompt in ids]
    for prompts in (texts, ids):
        said = await up.complete(prompts, max_tokens=8)
        assert [choice.text.strip() for choice in said.choices] == wanted
    alone = await up.complete(ids[1], max_tokens=8, echo=True)
    assert alone.choices[0].text.removeprefix("<s>").strip().startswith(texts[1])
    chunks = await up.complete(texts[0], max_tokens=8, stream=True)
    assert [text.strip() for text in (await streamed(chunks))[0]] == wanted[:1]


async def test_langchain_runs_unchanged(up: Gateway) -> None:
    def model(**how: Any) -> ChatOpenAI:
        return ChatOpenAI(
            base_url=f"{up.url}/v1", api_key="none", model="embedded", temperature=0, **how
        )

    asked = [HumanMessage(content=ASKED[0]["content"])]
    assert (await model().ainvoke(asked)).content == ANSWER
    pieces = [piece async for piece in model(stream_usage=True).astream(asked)]
    assert "".join(piece.content for piece in pieces) == ANSWER
    assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata)
    parts = [{"type": "text", "text": PASSAGE}, {"type": "text", "text": "Where does Kewyn live?"}]
    assert (await model().ainvoke([HumanMessage(content=parts)])).content


async def test_a_seed_says_the_same_again_and_each_choice_has_its_own(up: Gateway) -> None:
    def asked(seed: int, stream: bool = False) -> Any:
        how = {"temperature": 1.5, "top_p": 0.9, "extra_body": {"ignore_eos": True}}
        return up.complete("Kewyn", max_tokens=12, n=3, seed=seed, stream=stream, **how)

    first, again, other = [await asked(seed) for seed in (7, 7, 70)]
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in again.choices]
    assert len(set(texts)) == 3
    assert set(texts).isdisjoint(choice.text for choice in other.choices)
    assert (await streamed(await asked(7, stream=True)))[0] == texts


async def test_log_probabilities_are_the_unsplit_models(up: Gateway, unsplit: Any) -> None:
    prompt = chat_tokens(EMBEDDED.tokenizer, ASKED)
    said = await up.chat(logprobs=True, top_logprobs=3)
    content = said.choices[0].logprobs.content
    tokens = oracle(unsplit, prompt, said.usage.completion_tokens)
    with torch.no_grad():
        logits = unsplit(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    wanted = logits.log_softmax(-1)
    assert "".join(one.token for one in content).strip() == said.choices[0].message.content
    assert len(content) == len(tokens) - 1  # what ends the answer is no part of it
    for one, token, row in zip(content, tokens, wanted, strict=False):
        assert one.logprob == pytest.approx(float(row[token]), abs=1e-4)
        best = row.topk(3).values.tolist()
        assert [top.logprob for top in one.top_logprobs] == pytest.approx(best, abs=1e-4)
        assert bytes(one.bytes).decode() == one.token

    streaming = await up.chat(logprobs=True, top_logprobs=3, stream=True)
    pieces = [chunk.choices[0].logprobs async for chunk in streaming]
    assert [one for piece in pieces if piece for one in piece.content] == content


async def test_completions_have_log_probabilities_in_their_own_form(up: Gateway) -> None:
    said = (await up.complete("Tobette comes", max_tokens=4, logprobs=2)).choices[0]
    assert "".join(said.logprobs.tokens) == said.text
    for token, offset in zip(said.logprobs.tokens, said.logprobs.text_offset, strict=True):
        assert said.text[offset:].startswith(token)
    for score, top in zip(said.logprobs.token_logprobs, said.logprobs.top_logprobs, strict=True):
        assert score == max(top.values())
        assert len(top) == 2
    chunks = await up.complete("Tobette comes", max_tokens=4, logprobs=2, stream=True)
    pieces = [chunk.choices[0].logprobs async for chunk in chunks]
    offsets = [offset for piece in pieces if piece for offset in piece.text_offset]
    assert offsets == said.logprobs.text_offset


async def test_stop_ends_an_answer_and_is_not_part_of_it(up: Gateway) -> None:
    whole = (await up.chat(messages=SAID)).choices[0]
    stop = " in Marshmoor"
    assert stop in whole.message.content
    for said in (stop, ["never", stop]):
        cut = (await up.chat(messages=SAID, stop=said)).choices[0]
        assert cut.message.content == whole.message.content.partition(stop)[0]
        assert cut.finish_reason == "stop"


async def test_penalties_keep_tokens_from_coming_again(up: Gateway) -> None:
    def asked(**how: float) -> Any:
        body = {"ignore_eos": True}
        return up.complete("Kewyn", max_tokens=40, logprobs=0, extra_body=body, **how)

    def most(answer: Any) -> int:
        tokens = answer.choices[0].logprobs.tokens
        return max(map(tokens.count, tokens))

    assert most(await asked(frequency_penalty=2.0)) < most(await asked())


async def test_many_at_once_stay_apart(up: Gateway) -> None:
    towns = ["Marshmoor", "Ravencombe", "Kareth", "Birchholt"]

    async def ask(town: str) -> str:
        said = f"Kewyn is a weaver. She lives in {town}.\nWhere does Kewyn live?"
        chunks = await up.chat(messages=[{"role": "user", "content": said}], stream=True)
        return (await streamed(chunks))[0][0]

    assert await asyncio.gather(*(ask(town) for town in towns * 4)) == towns * 4


async def test_the_benchmarks_streams_are_read_to_their_ends(up: Gateway) -> None:
    async with GatewayStreams(up.url, "embedded") as streams:
        done = await closed_loop(streams.stream, [[[5, 6, 7]] * 2] * 3, 8)
        with pytest.raises(RuntimeError, match="context_length_exceeded"):
            await streams.stream([5], 4000)
    assert (done.tokens, len(done.firsts_s)) == (48, 6)
    assert 0 < min(done.firsts_s) <= max(done.firsts_s) < done.took_s


@pytest.mark.parametrize("stream", [True, False])
async def test_who_goes_away_leaves_nothing_on_the_trunk(up: Gateway, stream: bool) -> None:
    asking = asyncio.create_task(up.chat(messages=SAID, stream=stream, n=2, **LONG))
    await until(lambda: up.trunk.sessions == 2)
    free = up.trunk.kv_positions_free
    if stream:
        await (await asking).close()
    else:
        asking.cancel()
    await until(lambda: up.trunk.sessions == 0)
    assert up.trunk.kv_positions_free > free
    state = (await up.http.get("/v1/fedsea/state")).json()
    assert state["requests"]["now"] == 0


async def test_beyond_the_limit_requests_are_told_so() -> None:
    async with gateway("gateway.max_requests=1") as up:
        running_on = await up.chat(messages=SAID, stream=True, **LONG)
        with pytest.raises(openai.RateLimitError) as refused:
            await up.chat()
        assert refused.value.response.headers["retry-after"] == "1"
        assert refused.value.body["code"] == "too_many_requests"
        await running_on.close()
        await until(lambda: up.trunk.sessions == 0)
        assert (await up.chat()).choices[0].message.content == ANSWER


async def test_a_full_trunk_and_a_broker_that_is_gone_are_told_apart() -> None:
    overrides = ["trunk.max_sessions=1", "client.give_up_s=0.3"]
    asked = {"model": "embedded", "messages": ASKED, "stream": True}
    async with (
        running("embedded", "gateway.port=0", *overrides) as system,
        GatewayNode(system.settings) as node,
        httpx.AsyncClient(base_url=node.url) as http,
    ):
        async with system.client.session(50):
            full = await http.post("/v1/chat/completions", json=asked)
        await system.broker.__aexit__()
        gone = await http.post("/v1/chat/completions", json=asked)
        ready, live = [await http.get(path) for path in ("/readyz", "/healthz")]
        broker = system.settings.broker.clients
        state = (await http.get("/v1/fedsea/state")).json()
        await system.broker.__aenter__()
    assert (full.status_code, full.json()["error"]["code"]) == (503, "busy")
    assert int(full.headers["retry-after"]) >= 1
    assert (gone.status_code, gone.json()["error"]["code"]) == (503, "unreachable")
    assert (ready.status_code, live.status_code) == (503, 200)
    # Anybody may ask that: nothing is told of what is behind.
    assert "tcp://" not in ready.text
    assert broker not in ready.text
    assert state["trunk"]["error"]["code"] == "unreachable"


async def test_an_answer_that_breaks_off_says_why_and_is_no_answer_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "nodes.gateway")
    asked = {"model": "embedded", "prompt": "x", "stream": True, "ignore_eos": True}
    asked |= {"max_tokens": 1000}
    async with (
        running("embedded", "gateway.port=0", "client.give_up_s=0.3") as system,
        GatewayNode(system.settings) as node,
        httpx.AsyncClient(base_url=node.url) as http,
        http.stream("POST", "/v1/completions", json=asked) as reply,
    ):
        lines = reply.aiter_lines()
        await anext(lines)
        await system.broker.__aexit__()
        last = [line async for line in lines if line][-1]
        await system.broker.__aenter__()
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "unreachable"
    (told,) = [one for one in caplog.records if one.name == "nodes.gateway.endpoint"]
    assert (told.levelname, told.msg, told.__dict__["code"]) == (
        "WARNING",
        "broken off",
        "unreachable",
    )


WRONG: list[tuple[dict[str, Any], int, str | None, str | None]] = [
    ({"messages": []}, 400, None, "messages"),
    ({"model": "gpt-5"}, 404, "model_not_found", None),
    ({"max_tokens": 4000}, 400, "context_length_exceeded", None),
    ({"max_tokens": 5000}, 400, None, "max_tokens"),
    ({"n": 17}, 400, None, "n"),
    ({"temperature": -1}, 400, None, "temperature"),
    ({"logit_bias": {"5": 1}}, 400, "unsupported_parameter", "logit_bias"),
    ({"response_format": {"type": "json_object"}}, 400, None, "response_format.type"),
    ({"tool_choice": "required"}, 400, None, "tool_choice"),
    ({"top_logprobs": 2}, 400, None, None),
    ({"stop": [""]}, 400, None, "stop.0"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "invalid_prompt", None),
]


async def test_what_cannot_be_done_is_refused_by_name_and_no_prompt_is_repeated(
    up: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "Zanzibar"
    asked = [{"role": "user", "content": secret}]
    for fields, status, code, param in WRONG:
        found, error = await up.refused(**{"messages": asked, **fields})
        assert (found, error["code"], error["param"]) == (status, code, param), fields
        assert error["type"] == "invalid_request_error"
        assert secret not in json.dumps(error)
    picture = [{"type": "image_url", "image_url": {"url": secret}}]
    for content in (picture, [{"type": "text", "text": secret, "more": 1}], {"a": secret}):
        status, error = await up.refused(messages=[{"role": "user", "content": content}])
        assert (status, error["param"]) == (400, "messages.0.content")
        assert secret not in json.dumps(error)
    await up.chat(messages=asked)
    await up.complete(secret)
    assert "answered" in caplog.text
    assert secret not in caplog.text
    assert secret.encode() not in caplog.text.encode("utf-16")


async def test_harmless_fields_and_nulls_change_nothing(up: Gateway) -> None:
    said = await up.chat(
        user="anna",
        metadata={"a": "b"},
        store=False,
        logit_bias=None,
        response_format={"type": "text"},
        parallel_tool_calls=True,
        stop=None,
        n=None,
    )
    assert said.choices[0].message.content == ANSWER


async def test_bodies_are_bounded_and_must_be_json() -> None:
    async with gateway("gateway.max_body_kb=4", "gateway.stalled_s=0.3") as up:
        url = "/v1/chat/completions"
        long = await up.refused(messages=[{"role": "user", "content": "a" * 5000}])
        assert (long[0], long[1]["code"]) == (413, "too_large")
        text = await up.http.post(url, content=b"{}", headers={"content-type": "text/plain"})
        assert (text.status_code, text.json()["error"]["code"]) == (415, "not_json")
        headers = {"content-type": "application/json"}
        for content in (b"{", b"\xff", b"[]", b"[" * 4000):
            broken = await up.http.post(url, content=content, headers=headers)
            assert (broken.status_code, broken.json()["error"]["type"]) == (
                400,
                "invalid_request_error",
            )

        async def slowly() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(1)

        slow = await up.http.post(url, content=slowly(), headers=headers)
        assert (slow.status_code, slow.json()["error"]["code"]) == (408, "slow")
        lost = await up.http.get("/v1/nothing")
        assert (lost.status_code, lost.json()["error"]["type"]) == (404, "invalid_request_error")


async def test_who_has_no_key_is_not_answered(tmp_path: Path) -> None:
    keys, key = tmp_path / "api.keys", "sk-0123456789abcdef"
    keys.write_text(f"# anna\n{key}\n\nsk-of-somebody-else\n")
    with pytest.raises(KeyFileError, match="chmod"):
        GatewayNode(Settings.load(None, [f"gateway.api_keys={keys}"]))
    keys.chmod(0o600)
    async with gateway(f"gateway.api_keys={keys}", key=key) as up:
        assert (await up.chat()).choices[0].message.content == ANSWER
        for headers in ({}, {"authorization": "Bearer sk-wrong"}, {"authorization": key}):
            for path in ("/v1/models", "/v1/fedsea/state"):
                reply = await up.http.get(path, headers=headers)
                assert reply.status_code == 401
                assert reply.json()["error"]["code"] == "invalid_api_key"
        assert (await up.http.get("/healthz")).status_code == 200
        assert (await up.http.get("/readyz")).status_code == 200


async def test_without_keys_a_foreign_name_for_this_machine_is_refused(up: Gateway) -> None:
    rebound = await up.http.get("/v1/fedsea/state", headers={"host": "evil.example:8000"})
    assert rebound.status_code == 403
    named = await up.http.get("/v1/models", headers={"host": "localhost:8000"})
    assert named.status_code == 200


async def test_off_loopback_it_wants_keys_and_tls(tmp_path: Path) -> None:
    def made(*overrides: str) -> GatewayNode:
        return GatewayNode(Settings.load(None, ["gateway.host=0.0.0.0", *overrides]))

    for local in ("127.0.0.1", "::1", "localhost"):
        GatewayNode(Settings.load(None, [f"gateway.host='{local}'"]))
    with pytest.raises(PlaintextRefused, match="api_keys"):
        made()
    no_keys = "gateway.insecure_no_keys_off_loopback=true"
    with pytest.raises(PlaintextRefused, match="tls_certificate"):
        made(no_keys)
    made(no_keys, "gateway.insecure_plaintext_off_loopback=true")


async def test_a_port_that_is_taken_and_files_that_are_none_are_typed_errors(
    up: Gateway, tmp_path: Path
) -> None:
    async with running("embedded", f"gateway.port={httpx.URL(up.url).port}") as system:
        with pytest.raises(EndpointUnavailable, match="in use"):
            async with GatewayNode(system.settings):
                pass
        nothing = {"tls_certificate": str(tmp_path / "a"), "tls_key": str(tmp_path / "b")}
        with pytest.raises(ConfigError, match="No such file"):
            async with GatewayNode(system.settings.replace(gateway=nothing)):
                pass


async def test_adapters_are_models(tmp_path: Path) -> None:
    model = EMBEDDED.folders[0]
    lora = LoraSettings(rank=4, targets=("q_proj", "v_proj"))
    adapter = make_adapter(model, tmp_path / "formal", lora, blocks=range(6))
    held = [f"{party}.adapters={{formal: {adapter}}}" for party in ("trunk", "client")]
    prompt = list(EMBEDDED.tokenizer(PASSAGE)["input_ids"])
    async with gateway(*held) as up:
        models = (await up.openai.models.list()).data
        how = {"max_tokens": 8, "extra_body": {"ignore_eos": True}}
        said = {m.id: (await up.complete(prompt, model=m.id, **how)) for m in models}
        assert (await up.openai.models.retrieve("formal")).parent == "embedded"
    assert [one.id for one in models] == ["embedded", "formal"]
    assert models[0].cut == {"head_blocks": 1, "tail_blocks": 1}
    for name, folder in (("embedded", None), ("formal", adapter)):
        wanted = oracle(with_adapter(model, folder), prompt, 8)
        assert said[name].choices[0].text == text_of([*prompt, *wanted])[len(text_of(prompt)) :]
        assert said[name].model == name
    assert said["embedded"].choices[0].text != said["formal"].choices[0].text


async def test_under_noise_answers_come_and_the_state_tells_of_it() -> None:
    async with gateway("noise.mode=relative", "noise.scale=0.5") as up:
        assert (await up.chat(max_tokens=3)).choices[0].message.content
        state = (await up.http.get("/v1/fedsea/state")).json()
    assert state["privacy"]["sigma"] == pytest.approx(0.5 * state["privacy"]["head_rms"])
    assert state["privacy"]["recovery"]["share"] > state["privacy"]["max_recovery"]
    assert state["traffic"]["tokens"] > 0
    assert state["traffic"]["bytes_sent"] > state["traffic"]["tokens"] * 512
    assert [node["name"] for node in state["trunk"]["nodes"]] == [up.trunk.name]


async def test_it_warns_once_of_what_an_audit_recovered(caplog: pytest.LogCaptureFixture) -> None:
    async with gateway("noise.mode=relative"):
        pass
    warned = [record for record in caplog.records if "recovered" in record.getMessage()]
    assert len(warned) == 1
    caplog.clear()
    async with gateway("noise.mode=relative", "noise.max_recovery=1.0"):
        pass
    assert not [record for record in caplog.records if "recovered" in record.getMessage()]


async def test_it_mounts_in_another_application_around_a_client_that_is_there() -> None:
    async with running("embedded") as system:
        app = Starlette(routes=[Mount("/ai", create_app(system.client, system.settings))])
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            asked = {"model": "embedded", "messages": ASKED, "temperature": 0}
            said = await http.post("/ai/v1/chat/completions", json=asked)
            live = await http.get("/ai/healthz", headers={"host": "10.0.0.7"})
    assert said.json()["choices"][0]["message"]["content"] == ANSWER
    assert live.status_code == 200


async def test_without_a_tokenizer_token_ids_are_completed(
    make_model: Callable[..., Path], unsplit: Any
) -> None:
    folder = make_model("llama")
    async with gateway(model=folder) as up:
        name = folder.name
        said = await up.complete([5, 6, 7], model=name, max_tokens=4)
        assert said.usage.completion_tokens == 4
        status, error = await up.refused(model=name)
        assert (status, "no tokenizer" in error["message"]) == (400, True)


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "integer"}}},
    },
}
TEMPLATE = "{{ tools }}{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(scope="module")
def caller(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model each of whose tokens is a call of a tool, so that it says nothing else."""
    folder = tmp_path_factory.mktemp("caller")
    shutil.copytree(tiny_llama, folder, dirs_exist_ok=True)
    call = '<tool_call>{{"name": "weather", "arguments": {{"town": {}}}}}</tool_call>'
    words = Tokenizer(WordLevel({call.format(i): i for i in range(300)}, call.format(3)))
    fast = PreTrainedTokenizerFast(tokenizer_object=words)
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder


async def test_calls_of_tools_are_told_as_such(caller: Path) -> None:
    async with gateway(model=caller) as up:
        asked = {"model": caller.name, "tools": [WEATHER], "max_tokens": 2}
        whole = (await up.chat(**asked)).choices[0]
        chunks = [chunk async for chunk in await up.chat(**asked, stream=True)]
        none = (await up.chat(**asked, tool_choice="none")).choices[0]
        chat = ChatOpenAI(base_url=f"{up.url}/v1", api_key="none", model=caller.name, max_tokens=1)
        bound = await chat.bind_tools([WEATHER]).ainvoke("w2")
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
    assert [call.function.name for call in whole.message.tool_calls] == ["weather"] * 2
    assert all("town" in json.loads(c.function.arguments) for c in whole.message.tool_calls)
    streamed_calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
    assert [c.function.arguments for c in streamed_calls] == [
        c.function.arguments for c in whole.message.tool_calls
    ]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert none.finish_reason == "length"
    assert none.message.content.startswith("<tool_call>")
    assert bound.tool_calls[0]["name"] == "weather"
