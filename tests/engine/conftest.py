"""What tests of the engine share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from remote_server import Server
from safetensors.torch import load_file, save
from scaled import make_model
from trained import trained, untrained

from rorqual.core.records import write_atomic
from rorqual.data.chat import ChatFormat, chat_format
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine
from rorqual.engine.native.library import FORCED, instruction_set, kernel
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


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Use the native kernels of another instruction set."""

    def use(name: str) -> None:
        monkeypatch.setenv(FORCED, name)
        instruction_set.cache_clear()
        kernel.cache_clear()

    yield use
    monkeypatch.undo()
    instruction_set.cache_clear()
    kernel.cache_clear()


class Trained(dict[str, Decoder]):
    """Trained models by kind of attention. Each is trained when a test first needs it, and kept in `folder` for other test processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, kind: str) -> Decoder:
        file = self.folder / f"{kind}.safetensors"
        if file.is_file():
            self[kind] = untrained(kind).requires_grad_(False)
            self[kind].load_state_dict(load_file(file))
            return self[kind]
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        self[kind] = trained(kind, rows=4)
        torch.set_num_threads(before)
        write_atomic(file, save({name: weight.contiguous() for name, weight in self[kind].state_dict().items()}))
        return self[kind]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoder]:
    own = tmp_path_factory.getbasetemp()
    return Trained(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)
