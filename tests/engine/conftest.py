"""What tests of the engine share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from remote_server import Server
from scaled import make_model
from trained import trained

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


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Trained(dict[str, Decoder]):
    """Trained models by kind of attention. Each is trained when a test first needs it."""

    def __missing__(self, kind: str) -> Decoder:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        self[kind] = trained(kind)
        torch.set_num_threads(before)
        return self[kind]


@pytest.fixture(scope="session")
def models() -> dict[str, Decoder]:
    return Trained()
