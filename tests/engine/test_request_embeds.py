"""Requests with embeddings of their own: answers as of the text or picture that they are, and no block for two pictures. Random schedules:
test_same_bits.py."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conversations import engine_for
from scaled import finish, make_model
from schedules import differences
from test_isolation import counted

from rorqual.core.errors import DataError
from rorqual.core.records import Message
from rorqual.data.chat import ChatFormat
from rorqual.engine import Completion, Embeds, Engine, Request, SamplingParams
from rorqual.engine.remote.engine import RemoteEngine
from rorqual.model import Decoder
from rorqual.ops.paged import BLOCK

HOLE = 7
TEXT = tuple(random.Random(1).choices(range(8, 263), k=BLOCK + 21))
PLACES = (*range(4, 15), BLOCK - 2, BLOCK - 1, BLOCK, BLOCK + 3, len(TEXT) - 1)
"""In both blocks and over their border, and the last token of the prompt."""
HOLES = tuple(HOLE if place in PLACES else token for place, token in enumerate(TEXT))
PARAMS = SamplingParams(max_tokens=9, temperature=1.0, ignore_eos=True)


def picture(seed: int, places: tuple[int, ...] = PLACES, width: int = 32) -> Embeds:
    return Embeds(torch.randn(len(places), width, generator=torch.Generator().manual_seed(seed)) * 0.4, places)


def asked(embeds: Embeds | None, **more: Any) -> Request:
    return Request(prompt_ids=HOLES, params=PARAMS, embeds=embeds, **more)


def alone(model: Decoder, chat: ChatFormat, request: Request) -> Completion:
    return engine_for(model, chat).generate([request])[0][0]


@pytest.mark.parametrize("name", ["mla", "gqa", "bf16", "packed"])
def test_the_embeddings_of_a_text_are_answered_as_the_text(name: str, chat: ChatFormat) -> None:
    """Behind its own tokens, and behind placeholders."""
    model = make_model("gqa" if name == "gqa" else "mla")
    model = model.bfloat16() if name == "bf16" else model
    with torch.no_grad():
        embeds = Embeds(model.embed(torch.tensor(TEXT))[list(PLACES)], PLACES)
    engine = engine_for(model, chat, step_tokens=50, pack=name == "packed")
    [text], [same], [holes] = engine.generate(
        [replace(asked(given), prompt_ids=ids) for ids, given in ((TEXT, None), (TEXT, embeds), (HOLES, embeds))]
    )
    assert differences(same, text) == [] == differences(replace_ids(holes, text), text)
    assert differences(alone(model, chat, asked(None)), text), "without them it is another answer"


def replace_ids(completion: Completion, other: Completion) -> Completion:
    return Completion(**{**vars(completion), "prompt_ids": other.prompt_ids})


def test_beside_others_it_is_the_same(mla: Decoder, chat: ChatFormat) -> None:
    """Sequences that decode, texts that are prefilled, and other pictures, in the same steps."""
    requests = [
        asked(picture(1)),
        asked(None),
        asked(picture(2)),
        replace(asked(None), prompt_ids=TEXT[:5]),
        asked(picture(1)),
    ]
    engine = engine_for(mla, chat, step_tokens=70)
    request_ids = []
    for request in requests:
        request_ids.append(engine.submit(request))
        done = {d.request_id: d.completion for d in engine.step() if d.completion is not None}
    done |= finish(engine)
    for request_id, request in zip(request_ids, requests, strict=True):
        assert differences(done[request_id], alone(mla, chat, request)) == []


# ---- no block for two pictures


def test_a_picture_shares_its_blocks_with_itself_alone(mla: Decoder, chat: ChatFormat) -> None:
    engine = engine_for(mla, chat, reuse=True)
    last = picture(1).rows.copy()
    last[-1] += 0.1  # in the second block
    turned = picture(1).rows[::-1]
    moved = tuple(place + 1 if place == 14 else place for place in PLACES)
    for embeds, hit in (
        (picture(1), 0),
        (picture(2), 0),
        (None, 0),
        (picture(1), BLOCK),
        (picture(2), BLOCK),
        (None, BLOCK),
        (Embeds(last, PLACES), BLOCK),
        (Embeds(turned, PLACES), 0),
        (Embeds(picture(1).rows, moved), 0),
        (Embeds(picture(1).rows[:-5], PLACES[:-5]), 0),
    ):
        request = asked(embeds)
        found, fed = counted(engine, request)
        assert fed == len(HOLES) - hit
        assert differences(found, alone(mla, chat, request)) == []
    assert counted(engine, asked(picture(1), tenant="ben"))[1] == len(HOLES)


def test_a_conversation_about_a_picture_finds_what_was_said(chat: ChatFormat) -> None:
    """The reply's blocks have no rows, and their names are those of a prompt that holds them."""
    model = make_model("gqa", context=200)
    engine = engine_for(model, chat, reuse=True)
    said, _ = counted(engine, replace(asked(picture(1)), params=replace(PARAMS, max_tokens=60)))
    prompt = (*said.prompt_ids, *said.token_ids, 8)
    for seed, hit in ((1, 2 * BLOCK), (2, 0)):
        request = replace(asked(picture(seed)), prompt_ids=prompt)
        found, fed = counted(engine, request)
        assert fed == len(prompt) - hit
        assert differences(found, alone(model, chat, request)) == []


def test_two_pictures_in_one_step_are_prefilled_apart_and_equal_ones_together(mla: Decoder, chat: ChatFormat) -> None:
    def fed(*embeds: Embeds | None) -> int:
        engine = engine_for(mla, chat, reuse=True)
        found = engine.generate([asked(one) for one in embeds])
        for [one], given in zip(found, embeds, strict=True):
            assert differences(one, alone(mla, chat, asked(given))) == []
        return int(engine.stats()["miss_tokens"])

    once = fed(picture(1))
    assert fed(picture(1), picture(2)) == fed(picture(1), None) == 2 * once
    assert fed(picture(1), picture(1)) < 2 * once


# ---- what is refused


ROWS = np.ones((2, 3), np.float32)
POISONS: dict[str, tuple[Any, Any]] = {
    "no rows": (ROWS[:0], ()),
    "a row too few": (ROWS[:1], (1, 2)),
    "one number each": (ROWS[:, 0], (1, 2)),
    "twice one position": (ROWS, (1, 1)),
    "backwards": (ROWS, (2, 1)),
    "before the prompt": (ROWS, (-1, 1)),
    "half a position": (ROWS, (1, 1.5)),
    "NaN": (ROWS * np.nan, (1, 2)),
    "infinity": (ROWS * np.inf, (1, 2)),
    "words": ([["a"], ["b"]], (1, 2)),
}


@pytest.mark.parametrize("name", POISONS)
def test_rows_that_cannot_stand_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="no embeddings"):
        Embeds(*POISONS[name])
    Embeds(ROWS, (0, 1))


def test_an_engine_refuses_rows_that_are_not_its_models(engine: Engine) -> None:
    for embeds, message in (
        (picture(1, width=31), r"request 0, embeds: the rows have 31 numbers.*\n.*32"),
        (
            picture(1, (*PLACES, len(HOLES))),
            rf"request 0, embeds: position {len(HOLES)} is outside the prompt of {len(HOLES)}",
        ),
    ):
        with pytest.raises(DataError, match=message):
            engine.generate([asked(embeds)])


def test_an_address_takes_none() -> None:
    remote = RemoteEngine("http://127.0.0.1:9/v1", "m")
    with pytest.raises(DataError, match="request 0, embeds: a remote endpoint does not take embeddings"):
        remote.generate([Request((Message("user", "hi"),), embeds=picture(1))])
    with pytest.raises(DataError, match="request 0, adapter: a remote endpoint takes no adapter"):
        remote.generate([Request((Message("user", "hi"),), adapter="one")])
