"""Run one job of `grpo.py` with TRL, in a process of its own.

    python benchmarks/trl_side.py JOB.json FOLDER

The model is a Qwen3ForCausalLM with the weights of our run, and the tokenizer is our tokenizer.json. The prompts are text that
encodes to exactly our ids. All of this is checked before training starts.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from peer import Job, Outcome, finish, format_of, judge, peak_mib, problems_of, text_of, verdicts
from record import core_seconds
from torch import Tensor
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainerCallback,
)
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

from rorqual.core.records import RunDir
from rorqual.data.chat import ChatFormat
from rorqual.data.tokenizer import SpecialToken
from rorqual.model import Decoder
from rorqual.model.load import deepseek_v3, qwen3
from rorqual.model.load.run_directory import load_run

SAME = 1e-4
"""Maximum difference of a logit between our model and the exported one, in fp32."""


class Clock(TrainerCallback):
    """Records wall-clock and CPU seconds at the end of each update."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.marks.append((time.perf_counter(), core_seconds()))


def student(ours: Decoder, attention: str) -> Qwen3ForCausalLM:
    """Return the dense model in transformers, with the same weights."""
    model = Qwen3ForCausalLM(Qwen3Config(**qwen3.FAMILY.config_to_hf(ours.config) | {"attn_implementation": attention}))
    model.load_state_dict(qwen3.FAMILY.name_map(ours.config).to_hf(ours.state_dict()), strict=True)
    model.tie_weights()
    return model


def renamed(name: str) -> str:
    """Convert our tensor name to transformers' in-memory name. The layouts are the same."""
    router = {".ffn.router.gate": ".mlp.gate.weight", ".ffn.router.": ".mlp.gate."}
    for ours, theirs in {".attention.": ".self_attn.", **router, ".ffn.": ".mlp."}.items():
        name = name.replace(ours, theirs)
    return name if name.startswith("lm_head") else f"model.{name}"


def teacher(ours: Decoder) -> DeepseekV3ForCausalLM:
    """Return the mixture of experts in transformers, without the MTP module, which neither side uses here."""
    config = ours.config.model_copy(update={"num_nextn_predict_layers": 0})
    how = {"attn_implementation": "sdpa", "experts_implementation": "grouped_mm"}
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**deepseek_v3.config_to_hf(config) | how))
    state = {renamed(name): tensor for name, tensor in ours.state_dict().items() if not name.startswith("mtp")}
    model.load_state_dict(state, strict=True)
    return model.eval()


def check_model(ours: Decoder, theirs: Any, ids: list[int]) -> None:
    tokens = torch.tensor([ids])
    with torch.no_grad():
        difference = (ours.logits(ours(tokens).hidden) - theirs(tokens, use_cache=False).logits).abs().max()
    if not difference < SAME:
        sys.exit(f"the models differ: logits differ by {difference:.1e}")


def tokenizer_of(start: RunDir, chat: ChatFormat) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(
        tokenizer_file=str(start.tokenizer_file),
        bos_token=str(SpecialToken.BOS),
        eos_token=str(SpecialToken.EOS),
        pad_token=str(SpecialToken.PAD),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    if (made.eos_token_id,) != chat.stop_ids or made.pad_token_id != chat.tokenizer.special_id("<｜▁pad▁｜>"):
        sys.exit("the special tokens have other ids in transformers' tokenizer")
    return made


def common(job: Job, out: Path, batch: int) -> dict[str, Any]:
    """Return the arguments of both TRL trainers. Nothing is saved or reported during training."""
    setting = job.setting
    return {
        "output_dir": str(out / "trl"),
        "use_cpu": True,
        "bf16": setting.bf16,
        "torch_compile": setting.compiled,
        "per_device_train_batch_size": batch // setting.parts // setting.processes,
        "gradient_accumulation_steps": setting.parts,
        "gradient_checkpointing": False,
        "max_steps": job.steps * job.updates,
        "max_grad_norm": job.run().optim.clip,
        "learning_rate": job.lr,
        "max_completion_length": job.max_tokens,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "cache_implementation": "static" if setting.cache == "static" else None,
        "shuffle_dataset": False,
        "seed": job.seed,
        "logging_steps": 1,
        "ddp_backend": "gloo" if setting.processes > 1 else None,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def optimizers(job: Job, model: Any) -> tuple[Any, Any]:
    """Return AdamW and our recipe's schedule, which counts steps, not updates. The recipe's weight decay is 0."""
    config: Any = job.run().optim
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=job.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        **{job.setting.optim: True},
    )
    last = job.steps - 1
    factor = lambda update: config.schedule.at(min(update // job.updates, last), job.steps)  # noqa: E731
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def grpo_trainer(job: Job, out: Path, model: Any, chat: ChatFormat, tokenizer: Any) -> GRPOTrainer:
    problems = problems_of(job)
    rows = [{"prompt": text_of(chat, problem), "number": number} for number, problem in enumerate(problems)]
    check_prompts(rows, problems, chat, tokenizer)
    objective: Any = job.run().objectives[0]

    def reward(completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float | None]:
        return verdicts(chat, job, [problems[n] for n in number], completion_ids)

    args = GRPOConfig(
        **common(job, out, job.problems * job.samples // job.updates),
        num_generations=job.samples,
        steps_per_generation=job.updates * job.setting.parts,
        beta=0.0,
        epsilon=objective.clip_low,
        epsilon_high=objective.clip_high,
        loss_type="dapo",
        scale_rewards="group",
        use_transformers_continuous_batching=job.setting.cache == "paged",
    )
    return GRPOTrainer(
        model,
        reward,
        args,
        Dataset.from_list(rows),
        processing_class=tokenizer,
        optimizers=optimizers(job, model),
    )


def distillation_trainer(job: Job, out: Path, model: Any, chat: ChatFormat, tokenizer: Any) -> DistillationTrainer:
    """Return GKDTrainer's successor: all samples come from the student, with reverse KL (beta 1) over the whole vocabulary."""
    problems = [problem for problem in problems_of(job) for _ in range(job.samples)]
    rows = [{"prompt": text_of(chat, problem)} for problem in problems]
    check_prompts(rows, problems, chat, tokenizer)
    ours = load_run(RunDir(Path(job.teacher)))
    theirs = teacher(ours)
    check_model(ours, theirs, chat.prompt(problems[0].messages))
    args = DistillationConfig(**common(job, out, job.problems * job.samples), beta=1.0)
    return DistillationTrainer(
        model,
        theirs,
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        optimizers=optimizers(job, model),
    )


def check_prompts(rows: list[dict[str, Any]], problems: list[Any], chat: ChatFormat, tokenizer: Any) -> None:
    got = tokenizer(text=[row["prompt"] for row in rows])["input_ids"]
    for ids, problem in zip(got, problems, strict=True):
        if ids != chat.prompt(problem.messages):
            sys.exit(f"the prompt encodes to other ids than ours: {problem.prompt!r}")


def trained(ours: Decoder, theirs: Any) -> Decoder:
    """Load TRL's weights into our model, so that both get the same evaluation."""
    state: dict[str, Tensor] = {
        name: tensor.float().contiguous()
        for name, tensor in theirs.state_dict().items()
        if name != "lm_head.weight" or not ours.config.tie_word_embeddings
    }
    entries = qwen3.FAMILY.name_map(ours.config).entries
    ours.load_state_dict({entry.internal: state[entry.published[0]] for entry in entries})
    return ours


def main() -> None:
    job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
    out = Path(sys.argv[2])
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(job.setting.threads)
    start = RunDir(Path(job.start))
    chat, ours = format_of(start), load_run(start)
    tokenizer, model = tokenizer_of(start, chat), student(ours, job.setting.attention)
    check_model(ours, model, list(range(7, 64)))
    model.generation_config.eos_token_id = chat.stop_ids[0]
    make = grpo_trainer if job.what == "grpo" else distillation_trainer
    trainer, clock = make(job, out, model, chat, tokenizer), Clock()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    began = time.perf_counter()
    trainer.train()
    ended, spent = time.perf_counter(), core_seconds()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    if trainer.state.global_step != job.steps * job.updates or len(log) != job.steps * job.updates:
        sys.exit(f"{trainer.state.global_step} updates and {len(log)} records, {job.steps * job.updates} expected")
    each = job.problems * job.samples
    first = clock.marks[job.updates - 1]
    outcome = Outcome(
        who=f"TRL, {job.setting}",
        seconds=ended - began,
        warm_seconds=ended - first[0],
        warm_core_seconds=(spent - first[1]) * job.setting.processes,
        tokens=round(sum(e["completions/mean_length"] * each for e in log if "completions/mean_length" in e)),
        peak_mib=peak_mib(),
        rewards=[entry["reward"] for entry in log if "reward" in entry],
        versions={"trl": trl.__version__, "transformers": transformers.__version__},
    )
    if not trainer.is_world_process_zero():
        return
    if job.per_cell:
        judge(trained(ours, model), chat, job, out, "TRL")
    finish(outcome, out)


if __name__ == "__main__":
    main()
