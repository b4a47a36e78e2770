"""What a user's kind, request or backend could get wrong without a word: it is refused, or it is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from outside import SkippingConfig
from torch import Tensor

from rorqual.core.config import KindConfig, kinds
from rorqual.core.content_parts import ImagePart, ImageURL, TextPart
from rorqual.core.errors import ConfigError, DataError
from rorqual.core.records import Message, RunDir
from rorqual.data.chat import chat_format
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.engine import Embeds, Engine, Request, SamplingParams
from rorqual.model import ModelConfig, Stage, build
from rorqual.model.attention import AttentionConfig, GQAConfig
from rorqual.model.ffn import DenseConfig, FFNConfig
from rorqual.ops.backends import TORCH
from rorqual.ops.backends.torch import Torch
from rorqual.recipes.pretrain import pretrain
from rorqual.train.loop import fit
from rorqual.train.sources import SourceInputs
from rorqual.train.sources.on_policy import OnPolicyTeacher
from rorqual.train.sources.reference import ReferenceModel, load_frozen

TOKENIZER = Tokenizer.byte_level()


def model_config(attention: AttentionConfig | None = None, ffn: FFNConfig | None = None) -> ModelConfig:
    attention = attention or GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    stage = Stage(layers=2, attention=attention, ffn=ffn or DenseConfig(intermediate_size=16))
    return ModelConfig(
        vocab_size=BASE_VOCAB, hidden_size=24, stages=(stage,), max_position_embeddings=256, initializer_range=0.3
    )


# ---- pictures


def picture(name: str) -> Message:
    return Message("user", (TextPart(text="see "), ImagePart(image_url=ImageURL(url=f"data:image/png;base64,{name}"))))


def test_a_picture_that_no_embeddings_stand_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chat format that writes placeholders gives two pictures one prompt, and they would share blocks and answers."""
    chat = chat_format(TOKENIZER, "deepseek")
    monkeypatch.setattr(type(chat), "parts", (TextPart, ImagePart))
    monkeypatch.setattr(type(chat), "prompt", lambda *_, **__: list(range(40, 60)))
    engine = Engine.of(build(model_config(), seed=1), TOKENIZER, chat)
    with pytest.raises(DataError, match="the messages contain images, but the request has no embeddings") as caught:
        engine.generate([Request((picture("aaaa"),), SamplingParams(max_tokens=2))])
    assert "request 0" in caught.value.where
    rows = Embeds(torch.ones(1, 24), (5,))
    [[seen]] = engine.generate([Request((picture("aaaa"),), SamplingParams(max_tokens=2), embeds=rows)])
    assert seen.token_ids
    engine.check(Request((Message("user", (TextPart(text="text alone"),)),)))


# ---- kinds


def test_two_kinds_of_one_name_are_refused_and_a_class_without_a_name_is_none() -> None:
    class Base(KindConfig):
        pass

    class One(Base):
        kind: Literal["one"] = "one"

    class Heir(One):
        """It has no name of its own."""

    assert kinds(Base) == {"one": One}

    class Other(Base):
        kind: Literal["one"] = "one"

    with pytest.raises(ConfigError, match=r"two classes declare the name 'one': .*One and .*Other"):
        kinds(Base)


EACH_ANEW = """
import os, sys, torch
for code in sys.argv[1:]:
    if not os.fork():
        try:
            exec(code)
            print("found", flush=True)
        except Exception as error:
            print(" ".join(str(error).split()), flush=True)
        os._exit(0)
    os.wait()
"""
"""Runs each of its arguments in a process that has not imported this library before."""


def test_a_kind_of_an_installed_package_is_found_by_the_verbs(tmp_path: Path) -> None:
    """Its package names a module in the entry point group `rorqual.plugins`."""
    (tmp_path / "my_kinds.py").write_text(
        "from typing import Literal\n"
        "from rorqual.model.ffn import DenseConfig\n"
        "class Mine(DenseConfig):\n"
        '    kind: Literal["my_network"] = "my_network"\n'
        "from rorqual.ops.backends.torch import Torch\n"
        "class MyBackend(Torch):\n"
        '    name = "my_backend"\n'
        "from rorqual.train.optim import AdamWConfig\n"
        "class MyOptimizer(AdamWConfig):\n"
        '    kind: Literal["my_optimizer"] = "my_optimizer"\n'
        "from rorqual.model.ffn.router import GroupedTopKConfig\n"
        "class MyRouter(GroupedTopKConfig):\n"
        '    kind: Literal["my_router"] = "my_router"\n'
        "    n_routed_experts: int = 4\n"
        "    num_experts_per_tok: int = 1\n"
        "from rorqual.data.chat import DeepSeekChat\n"
        "class MyChat(DeepSeekChat):\n"
        '    name = "my_chat"\n'
        "from rorqual.train.track import TensorBoard\n"
        "class MyTracker(TensorBoard):\n"
        '    name = "my_tracker"\n'
        "from rorqual.tasks.families import Families\n"
        "class MyTask(Families):\n"
        '    name = "my_task"\n'
    )
    info = tmp_path / "my_kinds-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-kinds\nVersion: 1.0\n")
    run = RunDir(tmp_path / "run")
    config = model_config().model_dump(mode="json")
    config["stages"][0]["ffn"]["kind"] = "my_network"
    run.path.mkdir()
    run.config_file.write_text(f"recipe: sft\nmodel: {json.dumps(config)}\n")
    make = "from rorqual.recipes import make_run; make_run('sft', {'task': 'families', '%s.kind': 'my_%s'})"
    asked = {
        "unknown kind 'my_network'": f"from rorqual.cli.inspecting import find_model; find_model({str(run.path)!r})",
        "unknown backend 'my_backend'": "from rorqual.ops.backends import backend; backend('my_backend')",
        "unknown kind 'my_optimizer'": make % ("optim", "optimizer"),
        "unknown kind 'my_router'": make % ("model.stages.1.ffn.router", "router"),
        "unknown chat format 'my_chat'": (
            "from rorqual.data.chat import chat_format; from rorqual.data.tokenizer import Tokenizer; "
            "chat_format(Tokenizer.byte_level(), 'my_chat')"
        ),
        "unknown tracker 'my_tracker'": "from rorqual.train.track import check_trackers; check_trackers(['my_tracker'])",
        "unknown task 'my_task'": "from rorqual import load_task; load_task('my_task')",
    }
    for there in (False, True):
        if there:
            (info / "entry_points.txt").write_text("[rorqual.plugins]\nmine = my_kinds\n")
        env = {"PYTHONPATH": os.pathsep.join((str(tmp_path), *sys.path))}
        done = subprocess.run(
            [sys.executable, "-c", EACH_ANEW, *asked.values()], env=env, capture_output=True, text=True, check=True
        )
        said = done.stdout.splitlines()
        assert len(said) == len(asked)
        assert all((one == "found") if there else (error in one) for error, one in zip(asked, said)), said


def test_an_expert_beyond_the_number_that_was_said_is_refused() -> None:
    """130 are recorded as bytes with a sign: expert 129 would become another."""

    class Modest(SkippingConfig):
        def n_experts(self) -> int:
            return 100

    request = Request(prompt_ids=tuple(range(40, 90)), params=SamplingParams(max_tokens=2))
    for ffn in (SkippingConfig(experts=130), Modest(experts=130)):
        engine = Engine.of(build(model_config(ffn=ffn), seed=1), TOKENIZER, chat_format(TOKENIZER, "deepseek"))
        if isinstance(ffn, Modest):
            with pytest.raises(
                ValueError, match=r"a feed-forward network chose expert 1\d\d, but its `n_router_choices\(\)` is 100"
            ):
                engine.generate([request])
        else:
            assert engine.generate([request])


# ---- who computes beside the trainer


class _Loud(Torch):
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return 2 * super().rms_norm(x, weight, eps)


class _Picky(Torch):
    def supports(self, *_: object, **__: object) -> str:
        return "it runs nothing"


def test_references_and_teachers_are_computed_by_the_trainers_backend(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    (tmp_path / "text.txt").write_text("".join(f"{a} and {b} make {a + b}. " for a in range(40) for b in range(10)))
    fit(pretrain(data=str(tmp_path / "text.txt"), size="tiny", steps=1, rows=2, row=32), run, quiet=True)
    tokens = torch.arange(40, 60).unsqueeze(0)
    plain, loud = (load_frozen(run, "cpu", ops)(tokens).hidden for ops in (TORCH, _Loud()))
    assert float((plain - loud).abs().max()) > 0.1
    with pytest.raises(ConfigError, match="cannot run this model: it runs nothing"):
        load_frozen(run, "cpu", _Picky())
    trained, tokenizer = load_frozen(run, "cpu", _Loud()), Tokenizer.load(run.tokenizer_file)
    given = SourceInputs(trained, tokenizer, chat_format(tokenizer, "deepseek"), 0, 1)
    assert type(ReferenceModel(str(run.path), trained, tokenizer, temperature=1.0, threads=1).model.ops) is _Loud
    assert type(OnPolicyTeacher(str(run.path), given, 16, 0).model.ops) is _Loud
