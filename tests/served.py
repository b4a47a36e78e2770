"""A server as a user starts it, on loopback, with a tiny model of random weights."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from rorqual.core.records import MANIFEST_FILE, RunDir, write_json
from rorqual.data.tokenizer import Tokenizer
from rorqual.model import Decoder, ModelConfig, Stage, build
from rorqual.model.attention import GQAConfig
from rorqual.model.ffn import DenseConfig

CONTEXT = 4096
ENDLESS = 2**18
"""A context that no reply with `ignore_eos` fills before a test ends it."""
STOP_SECONDS = 300


@dataclass
class Server:
    """A running `rorqual serve`."""

    process: subprocess.Popen[str]
    url: str
    key: str
    log: Path
    took: float
    """Seconds that the start took on this machine, under its load."""
    rollout_key: str = ""

    @property
    def client(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=600, trust_env=False)

    def metric(self, name: str, default: float | None = None) -> float:
        """A metric's value, or `default` for one that the server has not counted yet."""
        with self.client as client:
            text = client.get("/metrics").text
        found = re.search(rf"^rorqual_{name} (\S+)$", text, re.MULTILINE)
        assert found or default is not None, text
        return float(found.group(1)) if found else float(default or 0)

    def wait(self, name: str, value: float, seconds: float = 300, default: float | None = None) -> None:
        """Until a metric has a value."""
        end = time.monotonic() + seconds
        while (now := self.metric(name, default)) != value:
            assert time.monotonic() < end, f"{name} is {now}, not {value}"
            time.sleep(0.05)

    def engine(self) -> int:
        """The process id of the engine."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
        return int(children.split()[0])

    def cpu(self) -> float:
        """Seconds of CPU that the engine has used."""
        fields = Path(f"/proc/{self.engine()}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write_run(
    path: Path, head_dim: int = 8, tokenizer: Tokenizer | None = None, chat: str = "deepseek", context: int = CONTEXT
) -> Path:
    """A small model of random weights, on our own tokenizer where none is given."""
    tokenizer = tokenizer or Tokenizer.byte_level()
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size + 1,
        hidden_size=32,
        stages=(
            Stage(
                layers=2,
                attention=GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=head_dim, qk_norm=True),
                ffn=DenseConfig(intermediate_size=48),
            ),
        ),
        max_position_embeddings=context,
        initializer_range=0.3,
    )
    model = build(config, seed=3)
    with torch.no_grad():
        model.lm_head.weight[:7] = 0  # special tokens are rare: replies of a random model have a length
    return save_run(path, model, tokenizer, chat)


def save_run(path: Path, model: Decoder, tokenizer: Tokenizer, chat: str = "deepseek") -> Path:
    """A run directory of a model."""
    step = RunDir(path).step_dir(0)
    step.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, step / "model.safetensors")
    write_json(step / MANIFEST_FILE, {"model.safetensors": (step / "model.safetensors").stat().st_size})
    tokenizer.save(RunDir(path).tokenizer_file)
    settings = {"recipe": "import", "chat": chat, "model": model.config.model_dump(mode="json")}
    RunDir(path).config_file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def small_model(vocab_size: int, context: int) -> Decoder:
    """A model that can learn some replies by heart."""
    stage = Stage(
        layers=2,
        attention=GQAConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16, qk_norm=True),
        ffn=DenseConfig(intermediate_size=128),
    )
    return build(
        ModelConfig(vocab_size=vocab_size, hidden_size=64, stages=(stage,), max_position_embeddings=context), seed=0
    )


def learn(model: Decoder, loss: Callable[[], Tensor], *, steps: int, bar: float) -> None:
    """Train until the loss is below `bar`."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    for _ in range(steps):
        found = loss()
        if found.item() < bar:
            return
        optimiser.zero_grad()
        found.backward()
        optimiser.step()


def command(run: Path, keys: Path, *words: str, program: Sequence[str] = ("-m", "rorqual")) -> list[str]:
    threads = [] if any(word.startswith("threads=") for word in words) else ["threads=1"]
    return [sys.executable, *program, "serve", str(run), f"keys={keys}", *threads, *words]


def start(
    run: Path, keys: Path, log: Path, *words: str, ulimit: str = "", program: Sequence[str] = ("-m", "rorqual")
) -> Server:
    """A server that is ready; its key is the one that it showed, or empty. `ulimit`: what the shell is told before. `program`: what Python
    runs."""
    began = time.monotonic()
    limited = ["sh", "-c", f'ulimit {ulimit}; exec "$@"', "sh"] if ulimit else []
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [*limited, *command(run, keys, *(words or ("port=0",)), program=program)],
            stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    key = rollout_key = ""
    assert process.stdout is not None
    for line in process.stdout:
        if "key of tenant" in line:
            key = line.split()[-1]
        if "rollout key" in line:
            rollout_key = line.split()[-1]
        if found := re.search(r" at (http\S+)/v1$", line):
            return Server(process, found.group(1), key, log, time.monotonic() - began, rollout_key)
    raise AssertionError(log.read_text(encoding="utf-8"))


@contextmanager
def running(run: Path, folder: Path, *words: str, **how: str) -> Iterator[Server]:
    """A server of `run` that keeps its keys and its log in `folder`. When the block ends, it stops with status 0 if it has not ended before,
    and has logged no traceback."""
    server = start(run, folder / "keys.json", folder / "log", "port=0", *words, **how)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            assert stop(server) == 0
    assert "Traceback" not in server.log.read_text(encoding="utf-8")


def stop(server: Server, number: int = signal.SIGTERM) -> int:
    server.process.send_signal(number)
    return server.process.wait(STOP_SECONDS)
