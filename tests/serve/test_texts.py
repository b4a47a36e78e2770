"""Characters that a model may write and few expect: an answer comes as it was written, and goes back in the next turn."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from rorqual.data.tokenizer import Tokenizer
from served import Server

BREAKS = "a\x85b\u2028c\u2029d\x0b\x0c\x1c\x1d\x1ee\r\nf"
HI = {"role": "user", "content": "hi"}


def body(*messages: Any, **fields: Any) -> dict[str, Any]:
    said = {"model": "tiny", "messages": [HI, *messages], "max_tokens": 4, "seed": 1}
    return {**said, "chat_template_kwargs": {"thinking": False}, **fields}


def test_no_character_of_an_answer_breaks_an_event(server: Server) -> None:
    asked = body(guided_choice=[BREAKS], max_tokens=100, stream=True)
    with server.client as client, client.stream("POST", "/v1/chat/completions", json=asked) as answer:
        lines = [line for line in answer.iter_lines() if line and line != "data: [DONE]"]
    assert all(line.startswith("data: {") for line in lines), "as httpx cuts lines"
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines]
    assert "".join(delta.get("content") or "" for delta in deltas) == BREAKS
    with server.client as client:
        whole = client.post("/v1/chat/completions", json=asked | {"stream": False}).json()
    assert whole["choices"][0]["message"]["content"] == BREAKS


@pytest.mark.parametrize("thinking", [True, False])
def test_what_a_model_writes_may_be_sent_back_whatever_it_holds(server: Server, thinking: bool) -> None:
    [nul] = Tokenizer.byte_level().encode("\0")
    options: dict[str, Any] = {"chat_template_kwargs": {"thinking": thinking}}
    with server.client as client:
        client_ = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, http_client=client, max_retries=0)
        asked = body(**options, logit_bias={str(nul): 100}, temperature=0)
        said = client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]
        assert "\0" in ((said.get("reasoning_content") if thinking else said["content"]) or "")
        again = client_.chat.completions.create(
            model="tiny",
            messages=[HI, said, HI],
            max_tokens=2,
            extra_body=options,  # type: ignore[list-item]
        )
        assert again.choices[0].finish_reason


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ({"guided_choice": ["abc", "abd"]}, {"abc", "abd"}),
        ({"guided_regex": "x{3}"}, {"xxx"}),
        ({"guided_json": {"const": 57}}, {"57"}),
    ],
)
def test_a_text_completion_follows_its_grammar_from_the_first_token(
    server: Server, given: dict[str, Any], texts: set[str]
) -> None:
    """The model's chat format thinks, but a completion has no place for reasoning."""
    body = {"model": "tiny", "max_tokens": 60, "temperature": 1, "seed": 2, "n": 16, **given}
    for prompt in ("z", Tokenizer.byte_level().encode_trusted("z<think>")):
        with server.client as client:
            answer = client.post("/v1/completions", json={**body, "prompt": prompt})
        assert {choice["text"] for choice in answer.json()["choices"]} <= texts, answer.text
