"""Train a LoRA adapter with TRL's DPOTrainer, and measure its loss on held-out pairs. dpo.py runs this file with TRL's Python.

TRL_PYTHON benchmarks/trl_dpo.py JOB.json FOLDER
"""

# mypy: ignore-errors
from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import datasets
import peft
import torch
import transformers
import trl
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback


def core_seconds() -> float:
    """Return the CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def read(path: str, count: int | None = None):
    """Return TRL's first `count` rows of a file of pairs, and the token ids of their prompts and replies."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line][:count]
    texts = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    return datasets.Dataset.from_list(texts), [[row[f"{name}_ids"] for name in texts[0]] for row in rows]


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    job, out = json.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
    (train, train_ids), (held_out, held_out_ids) = read(job["train"]), read(job["held_out"], job["measured"])
    args = trl.DPOConfig(
        output_dir=str(out / "trl"),
        beta=job["beta"],
        learning_rate=job["lr"],
        lr_scheduler_type="constant",
        adam_beta2=job["beta2"],
        max_steps=job["steps"],
        per_device_train_batch_size=job["pairs"],
        per_device_eval_batch_size=job["pairs"],
        seed=job["seed"],
        use_cpu=True,
        bf16=job["bf16"],
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    adapter = peft.LoraConfig(r=job["r"], lora_alpha=job["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = trl.DPOTrainer(
        AutoModelForCausalLM.from_pretrained(job["base"], dtype="float32", attn_implementation="sdpa"),
        args=args,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(job["base"]),
        peft_config=adapter,
    )
    for dataset, ids in ((trainer.train_dataset, train_ids), (trainer.eval_dataset, held_out_ids)):
        if [[row[f"{name}_ids"] for name in ("prompt", "chosen", "rejected")] for row in dataset] != ids:
            sys.exit("TRL's token ids differ from ours")
    trainer.remove_callback(PrinterCallback)
    began, cpu = time.perf_counter(), core_seconds()
    trainer.train()
    spent = {"seconds": time.perf_counter() - began, "core_seconds": core_seconds() - cpu}
    whole = core_seconds()
    trainer.save_model(str(out / "adapter"))
    measured = trainer.evaluate() if job["measure"] else {}
    outcome = spent | {
        "process_core_seconds": whole,
        "losses": [one["loss"] for one in trainer.state.log_history if "loss" in one],
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "held_out": {name: value for name, value in measured.items() if name.startswith(("eval_loss", "eval_rewards"))},
        "versions": {module.__name__: module.__version__ for module in (trl, peft, transformers, torch)},
    }
    (out / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main()
