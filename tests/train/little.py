"""Little models, batches and runs for the tests of training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import PrivateAttr, SerializeAsAny
from torch import Tensor

from rorqual.core.records import RunDir
from rorqual.data.chat import chat_format
from rorqual.data.pack import TrainingSample, pack, pack_rows
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.engine import Completion, Engine, Request, SamplingParams
from rorqual.model import Decoder, ModelConfig
from rorqual.recipes.distil import on_policy
from rorqual.recipes.grpo import grpo
from rorqual.recipes.models import v3_like
from rorqual.recipes.sft import sft
from rorqual.tasks.task import Verdict
from rorqual.train.batch import TrainBatch
from rorqual.train.gradient import UpdateResult, gradient, open_workers
from rorqual.train.loop import _train
from rorqual.train.objectives import Objective
from rorqual.train.optim import AdamWConfig, MuonConfig
from rorqual.train.run import Run
from rorqual.train.schedule import LearningRateSchedule
from rorqual.train.sources import Source, SourceConfig, SourceInputs, StepBatches
from rorqual.train.sources.rollouts import pack_rollouts
from rorqual.train.sources.sampler import ScoredCompletion
from rorqual.train.state import CLOCK_FIELDS, State, make_tokenizer, restore, write_run_files

ROW = 48
WEIGHTS, OPTIM = "model.safetensors", "optim.safetensors"
TASK = f"{Path(__file__).parent / 'letters.py'}:Letters"


def tiny(*, modules: int = 1, context: int = 64) -> ModelConfig:
    """Latent attention, a dense layer, a layer of 16 experts of which two serve a token, and prediction modules."""
    config = v3_like("tiny", vocab_size=BASE_VOCAB, context=context)
    return config.model_copy(update={"num_nextn_predict_layers": modules})


@torch.no_grad()
def loud(config: ModelConfig, seed: int = 0) -> Decoder:
    """Weights under which a mistake is visible: peaked attention, logits with a spread of 1, biases that choose."""
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(config)
    for name, tensor in sorted(model.state_dict().items()):
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("e_score_correction_bias"):
            tensor.copy_(0.05 * noise)
        elif tensor.dim() == 1:
            tensor.copy_(1 + 0.2 * noise)
        elif name == "embed_tokens.weight":
            tensor.copy_(noise)
        else:
            tensor.copy_(noise * (3.0 if "q_b_proj" in name else 1.0) / math.sqrt(tensor.shape[-1]))
    tokens = torch.randint(config.vocab_size, (4, 24), generator=generator)
    model.norm.weight.mul_(1.0 / model.logits(model(tokens).hidden).std())
    return model


def documents(seed: int, count: int = 7, longest: int = 20) -> list[TrainingSample]:
    """Random documents; about half of each is trained."""
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for _ in range(count):
        length = int(torch.randint(3, longest, (), generator=generator))
        ids = torch.randint(BASE_VOCAB, (length,), generator=generator).tolist()
        mask = (torch.rand(length, generator=generator) < 0.5).tolist()
        samples.append(TrainingSample(ids, [*mask[:-1], True]))
    return samples


def packed(samples: Sequence[TrainingSample], row: int = ROW) -> TrainBatch:
    """Several documents in a row."""
    return TrainBatch.from_packed(pack(samples, row).batch)


def padded(samples: Sequence[TrainingSample], row: int = ROW) -> TrainBatch:
    """One document in a row, the rest of it padding."""
    return TrainBatch.from_packed(pack_rows(samples, [[i] for i in range(len(samples))], row).batch)


def tokenizer() -> Tokenizer:
    return Tokenizer.byte_level()


def engine_of(model: Decoder, **options: Any) -> Engine:
    return Engine.of(model, tokenizer(), chat_format(tokenizer(), "deepseek"), **options)


def sampled(model: Decoder, *, temperature: float = 1.0, seed: int = 0) -> list[ScoredCompletion]:
    """Six samples of two prompts by the engine, with advantages of both signs."""
    prompts = [tuple(range(40, 45)), tuple(range(90, 99))]
    requests = [
        Request(prompt_ids=prompt, params=SamplingParams(max_tokens=12, temperature=temperature, seed=seed + i, n=3))
        for i, prompt in enumerate(prompts)
    ]
    advantages = [1.0, -0.5, 0.75, -1.25, 0.3, -2.0]
    completions: list[Completion] = [one for group in engine_of(model).generate(requests) for one in group]
    return [ScoredCompletion(c, Verdict.RIGHT, a) for c, a in zip(completions, advantages, strict=True)]


def samples_of(scored: Sequence[ScoredCompletion]) -> list[TrainingSample]:
    return [
        TrainingSample(
            [*s.completion.prompt_ids, *s.completion.token_ids],
            [False] * len(s.completion.prompt_ids) + [True] * len(s.completion.token_ids),
        )
        for s in scored
    ]


def rollouts(scored: list[ScoredCompletion], *, pad: bool = False, row: int = ROW) -> TrainBatch:
    """The batch of these samples, packed, or one in a row."""
    samples = samples_of(scored)
    return pack_rollouts(
        pack_rows(samples, [[i] for i in range(len(samples))], row) if pad else pack(samples, row), scored
    )


def update_of(
    model: Decoder, objectives: Sequence[Objective], batch: TrainBatch, *, parts: int = 1, threads: int = 1
) -> UpdateResult:
    """One update's gradient."""
    with open_workers(threads) as pool:
        return gradient(model, objectives, batch, parts=parts, pool=pool)


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest value of the first."""
    top = float(a.abs().max())
    return float((a - b).abs().max()) / top if top else float(b.abs().max())


def same_gradient(model: Decoder, one: UpdateResult, other: UpdateResult, tolerance: float = 1e-5) -> None:
    """Every tensor's gradient is the same, relative to its largest value."""
    for (name, _), a, b in zip(model.named_parameters(), one.grads, other.grads, strict=True):
        assert relative(a, b) <= tolerance, f"{name}: {relative(a, b):.1e}"


def sft_run(steps: int = 6, **changes: Any) -> Run:
    """A fine-tuning that takes a fraction of a second; checkpoints after every step."""
    run = sft(task=TASK, size="tiny", steps=steps, rows=4, row=ROW, think=0.5)
    optim = MuonConfig(
        lr=0.02, adamw=AdamWConfig(lr=2e-3, betas=(0.9, 0.98)), schedule=LearningRateSchedule(warmup=5, decay=0.4)
    )
    return run.model_copy(update={"save_seconds": 1e-9, "optim": optim} | changes)


def grpo_run(start: Path, steps: int = 2, *, temperature: float = 1.0, **changes: Any) -> Run:
    """A reinforcement that takes a second; checkpoints after every step."""
    run = grpo(
        task=TASK, start=str(start), steps=steps, problems=4, samples=6, max_tokens=12, row=ROW,
        temperature=temperature, options=changes.pop("options", {}),
    )  # fmt: skip
    return run.model_copy(update={"save_seconds": 1e-9} | changes)


def on_policy_run(base: Path) -> Run:
    """A distillation from `base` into itself that takes a second; checkpoints after every step."""
    run = on_policy(
        teacher=str(base), start=str(base), task=TASK, steps=2, problems=3, samples=3, max_tokens=12, row=ROW
    )
    return run.model_copy(update={"save_seconds": 1e-9})


def stored_weights(path: Path) -> bytes:
    return (RunDir(path).checkpoint() / "model.safetensors").read_bytes()


def records(path: Path) -> list[dict[str, Any]]:
    """The metrics of a run without what a clock wrote."""
    lines = [json.loads(line) for line in RunDir(path).metrics_file.read_bytes().split(b"\n") if line]
    return [{k: v for k, v in line.items() if k not in CLOCK_FIELDS} for line in lines]


def same(one: Path, other: Path) -> None:
    """Weights, optimizer and metrics of two finished runs are the same, to the bit."""
    a, b = RunDir(one).checkpoint(), RunDir(other).checkpoint()
    names = sorted(file.name for file in a.glob("*.safetensors"))
    assert a.name == b.name and OPTIM in names and len(names) == len([*b.glob("*.safetensors")]) == 2
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert records(one) == records(other)
    assert list(RunDir(one).rollouts()) == list(RunDir(other).rollouts())


Hook = Callable[[Source, Decoder, int], StepBatches]


class Hooked(Source):
    """A source whose steps come from `hook(source, model, step)`."""

    def __init__(self, source: Source, model: Decoder, hook: Hook) -> None:
        self.source, self.model, self.hook = source, model, hook

    def step(self, step: int) -> StepBatches:
        return self.hook(self.source, self.model, step)


def interrupted_at(at: int) -> Hook:
    """Ctrl-C at a step."""

    def hook(source: Source, model: Decoder, step: int) -> StepBatches:
        if step == at:
            raise KeyboardInterrupt
        return source.step(step)

    return hook


def watch(run: Run, out: Path) -> list[StepBatches]:
    """Train, and return what each step gave."""
    seen: list[StepBatches] = []

    def hook(source: Source, model: Decoder, step: int) -> StepBatches:
        seen.append(source.step(step))
        return seen[-1]

    train_with(run, RunDir(out), hook)
    return seen


def train_with(run: Run, out: RunDir, hook: Hook) -> State:
    """`fit`, with the steps that `hook` gives."""
    ids = make_tokenizer(run)
    state = restore(run, out, ids)
    source = run.source.build(SourceInputs(state.model, ids, chat_format(ids, run.chat), run.seed, 1))
    write_run_files(run, out, ids)
    _train(run, out, state, Hooked(source, state.model, hook), 1, True)
    return state


class Watched(SourceConfig):
    """A run's own source, with a copy of the weights and of what it gave at each step."""

    inner: SerializeAsAny[SourceConfig]
    _seen: list[tuple[dict[str, Tensor], StepBatches]] = PrivateAttr(default_factory=list)

    def build(self, materials: SourceInputs) -> Source:
        return Hooked(self.inner.build(materials), materials.model, self._watch)

    def _watch(self, source: Source, model: Decoder, step: int) -> StepBatches:
        self._seen.append((weights_of(model), source.step(step)))
        return self._seen[-1][1]


def weights_of(model: Decoder) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
