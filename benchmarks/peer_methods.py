"""Fit one peer of `rorqual teach`, or one of its rungs, on the rows of a job, and answer the test prompts, in a process of its own.

    PYTHON -P benchmarks/peer_methods.py JOB.json OUT.json

`ladder_peers.py` writes the job. PYTHON has the packages of rorqual and, for setfit, fasttext and LoRA, those that `ladder_peers.py` names.
Settings are chosen on the job's training rows alone. The core-seconds of `fit` cover the choice of the setting and the loading of an
encoder or a base model, not the import of Python packages.
"""

# mypy: ignore-errors
from __future__ import annotations

import json
import os
import pickle
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from rorqual.tasks.examples import canonical_form, load_function
from rorqual.teach.encoder import load_encoder
from rorqual.teach.examples import Example
from rorqual.teach.rungs.fields import TOKEN, flatten
from rorqual.teach.rungs.ladder import rungs_of
from rorqual.teach.rungs.rung import TrainingRows
from rorqual.teach.rungs.storage import save_rung

FOLDS = 5
PENALTIES = (0.1, 1.0, 10.0, 100.0)
RUNG = "rung: "
Predict = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True)
class Fitted:
    """A fitted method. `result_bytes` is the size of what fitting made, and `base_bytes` that of the pretrained files which it needs beside."""

    predict: Predict
    result_bytes: int | None
    base_bytes: int = 0
    setting: Any = None


@dataclass(frozen=True)
class Job:
    """A method, and the rows on which it is fitted. `train` and `dev` have `prompt`, `answer` and, for LoRA, `text` and `ids`.

    All methods are fitted on `rows`. The rungs of `rorqual teach` choose their settings on `train`, and LoRA its checkpoint on a part of `dev`.
    """

    method: str
    kind: str
    seed: int
    minutes: float
    encoder: str
    base: str
    rule: str
    train: list[dict[str, Any]]
    dev: list[dict[str, Any]]
    test: list[dict[str, Any]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [*self.train, *self.dev]

    @property
    def prompts(self) -> list[str]:
        return [row["prompt"] for row in self.rows]

    @property
    def answers(self) -> np.ndarray:
        return np.array([row["answer"] for row in self.rows])


def folds(count: int, seed: int) -> np.ndarray:
    """Return the fold of each of `count` rows, by a draw."""
    return np.random.default_rng(seed).permutation(np.arange(count) % FOLDS)


def best(
    settings: Sequence[Any], right: Callable[[Any, np.ndarray], float], count: int, seed: int, parts: int = FOLDS
) -> Any:
    """Return the setting with the most right rows in cross-validation. `right` counts for a setting and the mask of held-out rows."""
    fold = folds(count, seed)
    return max(settings, key=lambda setting: sum(right(setting, fold == part) for part in range(parts)))


# ---- sentence embeddings


def minilm(job: Job) -> Fitted:
    """Logistic regression on frozen embeddings for labels, ridge regression for numbers. The penalty is chosen by five folds.

    Prices and other numbers that are all positive are predicted as logarithms.
    """
    from sklearn.linear_model import LogisticRegression, Ridge

    encoder, answers = load_encoder(job.encoder), job.answers
    table = encoder.embed(job.prompts)
    size = os.path.getsize(job.encoder)
    if job.kind == "label":
        made = lambda penalty: LogisticRegression(C=penalty, max_iter=1000)  # noqa: E731
        right = lambda c, held: (made(c).fit(table[~held], answers[~held]).predict(table[held]) == answers[held]).sum()  # noqa: E731
        penalty = best(PENALTIES, right, len(answers), job.seed)
        model = made(penalty).fit(table, answers)
        return Fitted(
            lambda prompts: model.predict(encoder.embed(prompts)).tolist(),
            len(pickle.dumps(model)),
            size,
            {"C": penalty},
        )
    numbers = np.array([float(canonical_number(text)) for text in answers])
    positive, whole = bool((numbers > 0).all()), bool((numbers == numbers.round()).all())
    goal = np.log(numbers) if positive else numbers
    near = lambda a, held: -np.abs(Ridge(a).fit(table[~held], goal[~held]).predict(table[held]) - goal[held]).sum()  # noqa: E731
    penalty = best((0.01, 0.1, 1.0, 10.0), near, len(goal), job.seed)
    model = Ridge(penalty).fit(table, goal)

    def predict(prompts: Sequence[str]) -> list[str]:
        found = model.predict(encoder.embed(prompts))
        found = np.exp(found) if positive else found
        return [f"{round(one)}" if whole else f"{one:.6g}" for one in found.tolist()]

    return Fitted(predict, len(pickle.dumps(model)), size, {"alpha": penalty, "logarithm": positive})


def canonical_number(text: str) -> float:
    """Return the number of an answer. Fractions are written as `a/b` in the canonical form."""
    above, _, below = (canonical_form(text, "number") or "0").partition("/")
    return float(above) / float(below or 1)


SETFIT = ({"body_learning_rate": 2e-5}, {"body_learning_rate": 1e-4})
SETFIT_BATCH = 16


def setfit(job: Job) -> Fitted:
    """SetFit: contrastive training of the encoder, then logistic regression on its embeddings.

    A third of the time goes to the choice between `SETFIT` by one fold, the rest to the training on all rows. The number of steps is what the
    time allows, by the time of eight steps.
    """
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.linear_model import LogisticRegression

    labels = sorted(set(job.answers.tolist()))
    codes = np.array([labels.index(answer) for answer in job.answers])
    prompts = np.array(job.prompts)

    def trained(setting: dict[str, float], rows: np.ndarray, steps: int) -> SetFitModel:
        body = SentenceTransformer(job.encoder, device="cpu")
        model = SetFitModel(model_body=body, model_head=LogisticRegression(C=10.0, max_iter=1000), labels=None)
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(output_dir=folder, batch_size=SETFIT_BATCH, max_steps=steps, num_epochs=1, seed=job.seed,
                                     show_progress_bar=False, save_strategy="no", report_to="none", **setting)  # fmt: skip
            data = Dataset.from_dict({"text": prompts[rows].tolist(), "label": codes[rows].tolist()})
            Trainer(model=model, args=args, train_dataset=data).train()
        return model

    everything = np.ones(len(codes), bool)
    began = time.process_time()
    trained(SETFIT[0], everything, 1)
    once = time.process_time()
    trained(SETFIT[0], everything, 9)
    fixed, step = once - began, max(0.001, (time.process_time() - 2 * once + began) / 8)
    seconds = 60 * job.minutes - (time.process_time() - began)
    steps = max(8, int((seconds / 3 / len(SETFIT) - fixed) / step))
    held = folds(len(codes), job.seed) == 0

    def right(setting: dict[str, float]) -> int:
        return int((np.asarray(trained(setting, ~held, steps).predict(prompts[held].tolist())) == codes[held]).sum())

    scores = [right(setting) for setting in SETFIT]
    chosen = SETFIT[int(np.argmax(scores))]
    last = max(8, int((60 * job.minutes - (time.process_time() - began) - fixed) / step))
    model = trained(chosen, everything, last)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    setting = chosen | {"steps": last, "batch": SETFIT_BATCH, "right_of_fold": scores}
    return Fitted(lambda asked: [labels[int(code)] for code in model.predict(list(asked))], size, 0, setting)


# ---- words and characters


FASTTEXT = tuple(
    {"lr": lr, "epoch": epoch, "wordNgrams": 2, "minn": low, "maxn": high}
    for lr, epoch in ((0.5, 50), (1.0, 100))
    for low, high in ((0, 0), (2, 5))
)


def fasttext(job: Job) -> Fitted:
    """fastText's supervised classifier. The setting is chosen by five folds."""
    import fasttext as library

    names = {answer: f"__label__{place}" for place, answer in enumerate(sorted(set(job.answers.tolist())))}
    back = {name: answer for answer, name in names.items()}
    texts, answers = np.array([" ".join(TOKEN.findall(prompt.lower())) for prompt in job.prompts]), job.answers

    def trained(setting: dict[str, Any], rows: np.ndarray) -> Any:
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
            file.writelines(
                f"{names[answer]} {text}\n" for text, answer in zip(texts[rows], answers[rows], strict=True)
            )
            file.flush()
            return library.train_supervised(
                file.name, dim=50, bucket=100_000, thread=1, verbose=0, seed=job.seed, **setting
            )

    def ask(model: Any, asked: Sequence[str]) -> list[str]:  # `model.predict` of 0.9.2 fails with NumPy 2
        found = (model.f.predict(f"{text}\n", 1, 0.0, "strict") for text in asked)
        return [back[pairs[0][1]] if pairs else "" for pairs in found]

    right = lambda setting, held: (np.array(ask(trained(setting, ~held), texts[held])) == answers[held]).sum()  # noqa: E731
    chosen = best(FASTTEXT, right, len(answers), job.seed)
    model = trained(chosen, np.ones(len(answers), bool))
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        model.save_model(file.name)
        size = os.path.getsize(file.name)
    return Fitted(
        lambda prompts: ask(model, [" ".join(TOKEN.findall(one.lower())) for one in prompts]), size, 0, chosen
    )


CRF = ({"c1": 0.1, "c2": 0.1}, {"c1": 0.01, "c2": 0.01}, {"c1": 1.0, "c2": 0.001})
"""Penalties of CRFsuite's L-BFGS. The first is the one of sklearn-crfsuite's tutorial."""


def crf(job: Job) -> Fitted:
    """The plain recipe: the intent by logistic regression over TF-IDF, then one CRF for each intent; other fields that the text does not
    have are chosen like the intent. The features are those of sklearn-crfsuite's tutorial. The penalties are chosen by one fold."""
    from plain_crf import PlainCrf

    flat = [flatten(json.loads(answer)) for answer in job.answers]
    prompts, forms = np.array(job.prompts), [canonical_form(answer, "JSON") for answer in job.answers]

    def right(setting: dict[str, float], held: np.ndarray) -> int:
        places = np.flatnonzero(~held)
        found = PlainCrf([prompts[n] for n in places], [flat[n] for n in places], setting).predict(
            prompts[held].tolist()
        )
        return sum(
            canonical_form(text, "JSON") == forms[n] for text, n in zip(found, np.flatnonzero(held), strict=True)
        )

    chosen = best(CRF, right, len(flat), job.seed, parts=1)
    model = PlainCrf(job.prompts, flat, chosen)
    return Fitted(model.predict, sum(map(len, model.models)), 0, chosen)


# ---- the rungs of `rorqual teach`


def rung(job: Job) -> Fitted:
    """The rung of `rorqual teach` with the job's name: settings chosen without the dev split, then fitted on all rows."""
    name = job.method.removeprefix(RUNG)
    rule = load_function(job.rule, "rule") if job.rule else None
    without = {one.name: one for one in rungs_of(job.kind, rule=rule, rule_spec=job.rule)}
    known = (
        without if name in without else {one.name: one for one in rungs_of(job.kind, encoder=load_encoder(job.encoder))}
    )
    made = known[name]
    examples = [Example(n, row["prompt"], row["answer"]) for n, row in enumerate(job.rows, 1)]
    made.settle(TrainingRows(examples[: len(job.train)], job.kind))
    made.fit(TrainingRows(examples, job.kind))
    with tempfile.NamedTemporaryFile() as file:
        save_rung(made, Path(file.name))
        size = os.path.getsize(file.name)
    base = 0 if name in without else os.path.getsize(job.encoder)
    return Fitted(lambda prompts: [guess.answer for guess in made.predict(prompts)], size, base)


# ---- LoRA


def lora(job: Job) -> Fitted:
    """LoRA of a language model, as a writer or a classifier (see lora_peers.py)."""
    from lora_peers import fit_lora

    predict, result, base, setting = fit_lora(job, classifier=job.method == "lora-classifier")
    return Fitted(predict, result, base, setting)


METHODS: dict[str, tuple[Callable[[Job], Fitted], tuple[str, ...]]] = {
    "minilm": (minilm, ("label", "number")),
    "setfit": (setfit, ("label",)),
    "fasttext": (fasttext, ("label",)),
    "crf": (crf, ("JSON",)),
    "lora-writer": (lora, ("label", "number", "JSON", "text")),
    "lora-classifier": (lora, ("label",)),
}
"""The peers, and the kinds of answers to which each applies."""
PACKAGES = (
    "scikit-learn",
    "torch",
    "setfit",
    "sentence-transformers",
    "fasttext-wheel",
    "python-crfsuite",
    "trl",
    "peft",
    "transformers",
)


def main() -> int:
    warnings.filterwarnings("ignore")
    sys.path.append(str(Path(__file__).parent))
    job = Job(**json.loads(Path(sys.argv[1]).read_bytes()))
    fit = rung if job.method.startswith(RUNG) else METHODS[job.method][0]
    asked = [row["prompt"] for row in job.test]
    began = time.process_time()
    fitted = fit(job)
    middle = time.process_time()
    replies = fitted.predict(asked)
    answered = time.process_time()
    found = {
        "replies": replies,
        "fit_core_seconds": round(middle - began, 2),
        "answer_core_milliseconds": round(1000 * (answered - middle) / len(asked), 2),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "result_bytes": fitted.result_bytes,
        "base_bytes": fitted.base_bytes,
        "setting": fitted.setting,
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
