"""What tests of the engine share."""

from __future__ import annotations

import pytest
import torch
from scaled import make_model
from trained import KINDS, trained

from rorqual.data.chat import ChatFormat, chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine
from rorqual.model import Decoder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.byte_level()


@pytest.fixture(scope="session")
def chat(tokenizer: Tokenizer) -> ChatFormat:
    return chat_format(tokenizer)


@pytest.fixture(scope="session", params=["mla", "gqa"])
def model(request: pytest.FixtureRequest) -> Decoder:
    return make_model(request.param)


@pytest.fixture(scope="session")
def mla(tokenizer: Tokenizer) -> Decoder:
    return make_model("mla")


@pytest.fixture
def engine(mla: Decoder, tokenizer: Tokenizer, chat: ChatFormat) -> Engine:
    return Engine.of(mla, tokenizer, chat, slots=8)


@pytest.fixture(scope="session")
def models() -> dict[str, Decoder]:
    """Trained ones, by kind of attention."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    made = {kind: trained(kind) for kind in KINDS}
    torch.set_num_threads(before)
    return made
