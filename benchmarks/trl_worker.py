"""Fine-tune a model with TRL's SFTTrainer and peft within a time limit, and predict rows. trl_sft.py runs this file with TRL's Python.

    TRL_PYTHON benchmarks/trl_worker.py JOB.json FOLDER

The limit counts from the start of the process to the end of training, with imports, loading and the dev evaluations, on the wall clock or
in core-seconds. Predicting the test rows comes after it. Replies are greedy, and a trie allows only the tokens of the labels.
"""

# mypy: ignore-errors
from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from pathlib import Path

import datasets
import peft
import psutil
import torch
import transformers
import trl
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

DEV_SHARES = (0.4, 0.6, 0.8, 1.0)
"""Shares of the steps after which the model is measured on the dev rows, as in `rorqual teach`."""
FEWEST_STEPS, MOST_EPOCHS = 8, 12
"""The smallest number of steps and the largest number of epochs, as in `rorqual teach`."""
WARMUP = 5
"""Steps of linear warm-up."""
RECENT = 10
"""The speed is the mean of so many steps, without the first step."""
BATCH = 32
"""Rows that are predicted together."""
PACK_TOKENS = 256
"""Tokens of a packed row."""
ENDLESS = 10**6


def seconds() -> float:
    """Return the seconds since the start of this process."""
    return time.time() - psutil.Process(os.getpid()).create_time()


def core_seconds() -> float:
    """Return the CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Predictor:
    """Greedy decoding that allows only the labels, or with `free`, any text that is no longer than the longest of them."""

    def __init__(self, tokenizer, labels, *, free=False) -> None:
        self.tokenizer, self.end, self.free = tokenizer, tokenizer.eos_token_id, free
        self.trie = {}
        lengths = []
        for label in labels:
            node, ids = self.trie, [*tokenizer(label)["input_ids"], self.end]
            lengths.append(len(ids))
            for token in ids:
                node = node.setdefault(token, {})
        self.longest = max(lengths)

    def allowed(self, reply):
        """Return the tokens that may follow the tokens of a reply. A finished reply is padded with the end token."""
        node = self.trie
        for token in reply:
            node = node.get(token, {})
        return list(node) or [self.end]

    def __call__(self, model, rows):
        """Return the reply to each row, in the order of the rows. Rows of similar length are decoded together."""
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]["prompt_ids"]))
        replies = [""] * len(rows)
        training = model.training
        model.eval()
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            padded = self.tokenizer.pad(
                {"input_ids": [rows[place]["prompt_ids"] for place in places]},
                padding_side="left",
                return_tensors="pt",
            )
            width = padded["input_ids"].shape[1]
            with torch.no_grad():
                ids = model.generate(
                    **padded,
                    max_new_tokens=self.longest,
                    do_sample=False,
                    use_cache=True,
                    eos_token_id=self.end,
                    pad_token_id=self.end,
                    prefix_allowed_tokens_fn=None
                    if self.free
                    else lambda _, row, width=width: self.allowed(row[width:].tolist()),
                )
            texts = self.tokenizer.batch_decode(ids[:, width:], skip_special_tokens=True)
            for place, text in zip(places, texts, strict=True):
                replies[place] = text
        model.train(training)
        return replies


class Pace(TrainerCallback):
    """Turns the limit into a number of steps, measures the model on the dev rows four times, and keeps the best adapter.

    The number of steps is planned again after each step, from the speed of the last steps, so that the schedule ends at the limit.
    """

    def __init__(self, job, predict, dev, steps_per_epoch) -> None:
        self.limit, self.schedule = job["seconds"], job["setting"]["schedule"]
        self.clock = {"wall": seconds, "core": core_seconds}[job["clock"]]
        self.predict, self.dev = predict, dev
        self.most = max(FEWEST_STEPS, math.ceil(MOST_EPOCHS * steps_per_epoch))
        self.total, self.step_seconds = 0, 0.0  # unknown until the end of the warm-up
        self.ends = []
        self.dev_seconds, self.passed = 0.0, 0
        self.dev_results, self.best, self.weights = [], -1, {}

    def factor(self, step: int) -> float:
        """Return the learning rate of a step, as a share of the highest."""
        if step < WARMUP or not self.total:
            return min(1.0, (step + 1) / WARMUP)
        progress = min(1.0, (step - WARMUP) / max(1, self.total - WARMUP))
        return 1 - progress if self.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2

    def on_train_begin(self, args, state, control, model, **_) -> None:
        """Estimate the time of a dev evaluation."""
        self.predict(model, self.dev[:2])  # warms up
        began = self.clock()
        some = self.dev[:BATCH]
        self.predict(model, some)
        self.dev_estimate = (self.clock() - began) * len(self.dev) / len(some)

    def on_step_end(self, args, state, control, model, **_) -> None:
        step, now = state.global_step, self.clock()
        self.ends.append(now - self.dev_seconds)
        if step < WARMUP:
            return
        last = self.ends[-1 - RECENT :]
        self.step_seconds = (last[-1] - last[0]) / (len(last) - 1)
        left = self.limit - now - self.dev_estimate * (len(DEV_SHARES) - self.passed)
        self.total = min(self.most, max(FEWEST_STEPS, step + max(0, int(left / self.step_seconds))))
        passed = sum(step >= share * self.total for share in DEV_SHARES)
        if passed > self.passed:
            self.passed = passed
            self.measure(step, model)
        control.should_training_stop = step >= self.total

    def measure(self, step: int, model) -> None:
        """Measure the model on the dev rows, and keep its adapter if it is best. The later of two equal ones is kept."""
        began = self.clock()
        replies = self.predict(model, self.dev)
        right = sum(reply == row["completion"] for reply, row in zip(replies, self.dev, strict=True))
        if right >= self.best:
            self.best = right
            state = peft.get_peft_model_state_dict(model)
            self.weights = {name: tensor.detach().clone() for name, tensor in state.items()}
        self.dev_estimate = self.clock() - began
        self.dev_seconds += self.dev_estimate
        result = {"step": step, "right": right, "total": len(self.dev), "core_seconds": core_seconds()}
        self.dev_results.append(result)
        print(f"  step {step} of {self.total}: {right} of {len(self.dev)} right on dev", flush=True)


class PacedTrainer(trl.SFTTrainer):
    """An SFTTrainer whose learning rate follows `Pace`."""

    pace: Pace

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.pace.factor)
        return self.lr_scheduler


def read(path: Path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def layout(name: str, batch: int):
    """Return the arguments for a layout of the rows in a batch. On a CPU, SDPA separates the rows of a flat batch by their positions."""
    if name == "packed":
        return {"packing": True, "max_length": PACK_TOKENS, "per_device_train_batch_size": batch}
    return {"padding_free": name == "flat", "max_length": None, "per_device_train_batch_size": batch}


def check_ids(tokenizer, rows) -> None:
    for row in rows:
        if tokenizer(row["prompt"])["input_ids"] != row["prompt_ids"]:
            sys.exit(f"the prompt encodes to other ids than ours: {row['prompt']!r}")


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    job, out = json.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])
    setting, folder = job["setting"], Path(job["rows"])
    train, dev = read(folder / "train.jsonl"), read(folder / "dev.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(job["base"])
    check_ids(tokenizer, [*train, *dev])
    model = AutoModelForCausalLM.from_pretrained(job["base"], dtype="float32", attn_implementation="sdpa")
    args = trl.SFTConfig(
        output_dir=str(out / "trl"),
        use_cpu=True,
        bf16=setting["autocast"],
        gradient_checkpointing=False,
        learning_rate=setting["lr"],
        max_steps=ENDLESS,
        completion_only_loss=True,
        seed=job["seed"],
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **layout(setting["layout"], setting["batch"]),
    )
    adapter = peft.LoraConfig(
        r=setting["r"],
        lora_alpha=setting["alpha"],
        lora_dropout=setting["dropout"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    rows = [{name: row[name] for name in ("prompt", "completion")} for row in train]
    trainer = PacedTrainer(
        model, args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer, peft_config=adapter
    )
    predict = Predictor(tokenizer, sorted({row["completion"] for row in train}))
    pace = Pace(job, predict, dev, len(trainer.train_dataset) / setting["batch"])
    trainer.pace = pace
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(pace)
    trainer.train()
    trained = {"seconds": seconds(), "core_seconds": core_seconds()}
    outcome = {
        "setting": setting,
        "seed": job["seed"],
        "steps": trainer.state.global_step,
        "epochs": trainer.state.global_step * setting["batch"] / len(trainer.train_dataset),
        "step_seconds": pace.step_seconds,
        "dev_seconds": pace.dev_seconds,
        "trained_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "loss": [[one["step"], one["loss"]] for one in trainer.state.log_history if "loss" in one],
        "dev": pace.dev_results,
        **trained,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": {module.__name__: module.__version__ for module in (trl, peft, transformers, torch)},
    }
    if job["test"]:
        peft.set_peft_model_state_dict(trainer.model, pace.weights)
        test = read(folder / "test.jsonl")
        check_ids(tokenizer, test)
        replies = predict(trainer.model, test)
        outcome["test"] = dict(zip([row["key"] for row in test], replies, strict=True))
        outcome["test_core_seconds"] = core_seconds() - trained["core_seconds"]
    (out / "outcome.json").write_text(json.dumps(outcome, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
