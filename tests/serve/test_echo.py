"""Log-probabilities of a prompt from a real server: `echo` with `logprobs`, and vLLM's `prompt_logprobs`, are the engine's own, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rorqual.engine import Completion, Engine, Request, SamplingParams
from served import Server

IDS = list(range(40, 200))


@pytest.fixture(scope="module")
def engine(run: Path) -> Engine:
    return Engine(run, record_experts=False, slots=2, backend="auto")


def asked(engine: Engine, ids: list[int], **params: Any) -> Completion:
    [[found]] = engine.generate([Request(prompt_ids=tuple(ids), params=SamplingParams(prompt_logprobs=3, **params))])
    return found


def ask(server: Server, **body: Any) -> dict[str, Any]:
    with server.client as client:
        answer = client.post("/v1/completions", json={"model": "tiny", "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_an_echo_has_the_prompts_log_probabilities_before_the_answers(server: Server, engine: Engine) -> None:
    one = asked(engine, IDS, max_tokens=2)
    for _ in range(2):  # the second time the prefix is cached
        found = ask(server, prompt=IDS, max_tokens=2, echo=True, logprobs=2)
        [choice] = found["choices"]
        told = choice["logprobs"]
        assert told["token_logprobs"] == [*(one.prompt_logprobs or ()), *one.logprobs]
        assert [len(place or ()) for place in told["top_logprobs"][:4]] == [0, 2, 2, 2]
        assert told["top_logprobs"][0] is None
        assert found["usage"]["prompt_tokens"] == len(IDS) and found["usage"]["completion_tokens"] == 2
        assert "".join(told["tokens"]).startswith(choice["text"][: len(IDS)])
        assert told["text_offset"] == [sum(map(len, told["tokens"][:n])) for n in range(len(IDS) + 2)]


def test_a_text_begins_with_what_the_model_was_given(server: Server, engine: Engine) -> None:
    """The mark before a text has an entry, and no place in the text."""
    [choice] = ask(server, prompt="hello", max_tokens=1, echo=True, logprobs=0)["choices"]
    bos = engine.chat.bos
    assert bos is not None
    one = asked(engine, [bos, *engine.tokenizer.encode("hello")], max_tokens=1)
    told = choice["logprobs"]
    assert told["token_logprobs"] == [*(one.prompt_logprobs or ()), *one.logprobs]
    assert told["tokens"][1:6] == list("hello") and told["text_offset"][:7] == [0, 0, 1, 2, 3, 4, 5]
    assert choice["text"].startswith("hello")


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_count_the_characters_of_the_text_however_many_tokens_each_has(server: Server, stream: bool) -> None:
    body = {"model": "tiny", "prompt": "日 a", "guided_regex": "é日Z", "echo": True, "logprobs": 0, "stream": stream}
    with server.client as client:
        lines = client.post("/v1/completions", json=body).text.split("\n")
    choices = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines if "choices" in line]
    text = "日 aé日Z"
    assert "".join(choice["text"] for choice in choices) == text
    [_, *offsets] = [offset for choice in choices for offset in choice["logprobs"]["text_offset"]]
    assert offsets == [place for place, letter in enumerate(text) for _ in letter.encode()]


def test_no_tokens_at_all_may_be_asked_for(server: Server, engine: Engine) -> None:
    found = ask(server, prompt=IDS[:30], max_tokens=0, echo=True, logprobs=1)
    [choice] = found["choices"]
    assert choice["text"] == engine.tokenizer.decode(IDS[:30]) and choice["finish_reason"] == "length"
    assert choice["logprobs"]["token_logprobs"] == asked(engine, IDS[:30], max_tokens=1).prompt_logprobs
    assert found["usage"]["completion_tokens"] == 0 and found["usage"]["total_tokens"] == 30


def test_vllms_name_for_it(server: Server, engine: Engine) -> None:
    one = asked(engine, IDS[:20], max_tokens=1)
    [choice] = ask(server, prompt=IDS[:20], max_tokens=1, prompt_logprobs=2)["choices"]
    assert choice["logprobs"] is None
    found = choice["prompt_logprobs"]
    assert found[0] is None and len(found) == 20
    for place in range(1, 20):
        assert one.prompt_logprobs is not None and one.prompt_top_logprobs is not None
        assert found[place][str(IDS[place])]["logprob"] == one.prompt_logprobs[place]
        best = one.prompt_top_logprobs[place][:2]
        assert [found[place][str(id_)] for id_, _ in best] == [
            {"logprob": value, "rank": rank, "decoded_token": engine.tokenizer.token(id_)}
            for rank, (id_, value) in enumerate(best, start=1)
        ]
        assert set(found[place]) == {str(IDS[place]), *(str(id_) for id_, _ in best)}


def test_min_tokens_holds_off_the_end(server: Server, engine: Engine) -> None:
    [letter] = engine.tokenizer.encode("a")
    body: dict[str, Any] = {
        "prompt": [50, 51],
        "max_tokens": 12,
        "temperature": 0,
        "logprobs": 0,
        "logit_bias": {str(letter): 100},
        "stop": ["aa"],
    }
    for least, drawn, text in ((0, 2, ""), (5, 6, "aaaa")):
        found = ask(server, **body, min_tokens=least)
        assert (found["usage"]["completion_tokens"], found["choices"][0]["text"]) == (drawn, text)
        assert found["choices"][0]["finish_reason"] == "stop"
    with server.client as client:
        answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 3, "min_tokens": 4})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "min_tokens"
    assert "Lower `min_tokens`" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("logprobs", "prompt_logprobs"), [(3, 0), (1, 2), (0, 3)])
def test_both_names_at_once_are_each_as_alone(server: Server, logprobs: int, prompt_logprobs: int) -> None:
    base = {"prompt": IDS[:20], "max_tokens": 1, "echo": True}
    [one] = ask(server, **base, logprobs=logprobs)["choices"]
    [other] = ask(server, **base, prompt_logprobs=prompt_logprobs)["choices"]
    [both] = ask(server, **base, logprobs=logprobs, prompt_logprobs=prompt_logprobs)["choices"]
    assert (both["logprobs"], both["prompt_logprobs"]) == (one["logprobs"], other["prompt_logprobs"])
