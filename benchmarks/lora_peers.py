"""Fine-tune SmolLM2 with LoRA as a peer of `rorqual teach`: as a writer with TRL, or as a classifier with transformers and peft.

`peer_methods.py` calls `fit_lora`. The limit in core-minutes counts from the start of the process to the end of training, with the dev
evaluations. The best of four checkpoints on the dev rows is kept, as in `trl_worker.py`.
"""

# mypy: ignore-errors
from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import peft
import torch
import transformers
import trl
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback
from trl_worker import BATCH, ENDLESS, Pace, PacedTrainer, Predictor, layout

WRITER = {"lr": 2e-3, "r": 32, "alpha": 64, "batch": 16, "layout": "flat", "schedule": "cosine", "autocast": True}
"""The setting with the highest dev accuracy of the six in `trl_sft.py`, on a further seed of BANKING77 (docs/results/trl-77-labels.json)."""
CLASSIFIER = WRITER | {"lr": 1e-3}
"""The same setting, with a lower learning rate, because the classifier's new head is trained with it. No other was tried."""


MOST_DEV = 50
"""The number of training rows on which the checkpoint is chosen, and which are not trained on."""


class PacedClassifier(transformers.Trainer):
    """A Trainer whose learning rate follows `Pace`."""

    pace: Pace
    create_scheduler = PacedTrainer.create_scheduler


class Classify:
    """The label with the highest logit, for rows of similar length together."""

    def __init__(self, tokenizer, labels) -> None:
        self.tokenizer, self.labels = tokenizer, labels

    def __call__(self, model, rows):
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]["prompt_ids"]))
        replies = [""] * len(rows)
        training = model.training
        model.eval()
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            ids = [rows[place]["prompt_ids"] for place in places]
            with torch.no_grad():
                logits = model(**self.tokenizer.pad({"input_ids": ids}, return_tensors="pt")).logits
            for place, code in zip(places, logits.argmax(1).tolist(), strict=True):
                replies[place] = self.labels[code]
        model.train(training)
        return replies


def fit_lora(job: Any, *, classifier: bool) -> tuple[Callable[[Sequence[str]], list[str]], int, int, dict[str, Any]]:
    """Fine-tune the base model of a job, and return its answers to test prompts as a function, the adapter's bytes, those of the base
    model, and the setting."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    setting = CLASSIFIER if classifier else WRITER
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    dev, train = job.dev[:MOST_DEV], [*job.train, *job.dev[MOST_DEV:]]
    train, dev, test = ([row_of(row) for row in rows] for rows in (train, dev, job.test))
    labels = sorted({row["completion"] for row in train})
    predict = Classify(tokenizer, labels) if classifier else Predictor(tokenizer, labels, free=job.kind != "label")
    with tempfile.TemporaryDirectory() as folder:
        make = classifier_trainer if classifier else writer_trainer
        trainer = make(job, folder, setting, tokenizer, train, labels)
        limits = {"seconds": 60 * job.minutes, "clock": "core", "setting": setting}
        trainer.pace = Pace(limits, predict, dev, len(train) / setting["batch"])
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(trainer.pace)
        trainer.train()
    peft.set_peft_model_state_dict(trainer.model, trainer.pace.weights)
    by_prompt = {row["prompt"]: own for row, own in zip(job.test, test, strict=True)}
    adapter = sum(tensor.numel() * tensor.element_size() for tensor in trainer.pace.weights.values())
    base = sum(path.stat().st_size for path in Path(job.base).glob("*.safetensors"))
    reached = {"steps": trainer.state.global_step, "dev": trainer.pace.dev_results}
    return lambda prompts: predict(trainer.model, [by_prompt[one] for one in prompts]), adapter, base, setting | reached


def row_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the names that `trl_worker.py` uses."""
    return {"prompt": row["text"], "prompt_ids": row["ids"], "completion": row["answer"]}


def common_arguments(job: Any, folder: str, setting: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that both trainers have."""
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": setting["autocast"],
        "gradient_checkpointing": False,
        "learning_rate": setting["lr"],
        "max_steps": ENDLESS,
        "seed": job.seed,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def adapter_of(setting: dict[str, Any], task_type: str) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=setting["r"], lora_alpha=setting["alpha"], target_modules="all-linear", task_type=task_type
    )


def writer_trainer(job, folder, setting, tokenizer, train, labels) -> PacedTrainer:
    """Return TRL's trainer for a model that writes the answer."""
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype="float32", attn_implementation="sdpa")
    args = trl.SFTConfig(
        completion_only_loss=True,
        **common_arguments(job, folder, setting),
        **layout(setting["layout"], setting["batch"]),
    )
    rows = datasets.Dataset.from_list([{name: row[name] for name in ("prompt", "completion")} for row in train])
    adapter = adapter_of(setting, "CAUSAL_LM")
    return PacedTrainer(model, args, train_dataset=rows, processing_class=tokenizer, peft_config=adapter)


def classifier_trainer(job, folder, setting, tokenizer, train, labels) -> PacedClassifier:
    """Return a trainer for a model with a new head over the labels, on padded batches."""
    model = AutoModelForSequenceClassification.from_pretrained(job.base, num_labels=len(labels), dtype="float32")
    model.config.pad_token_id = tokenizer.pad_token_id
    args = transformers.TrainingArguments(
        per_device_train_batch_size=setting["batch"], **common_arguments(job, folder, setting)
    )
    rows = [{"input_ids": row["prompt_ids"], "labels": labels.index(row["completion"])} for row in train]
    model = peft.get_peft_model(model, adapter_of(setting, "SEQ_CLS"))
    collate = transformers.DataCollatorWithPadding(tokenizer)
    return PacedClassifier(model, args, train_dataset=datasets.Dataset.from_list(rows), data_collator=collate)
