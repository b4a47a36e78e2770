"""The stages of `teach` for a language model: choose the base model, ask it with examples in its prompt, train it, and reinforce it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from rorqual.convert.merge import merge_run
from rorqual.convert.safetensors_slices import Progress as BytesProgress
from rorqual.core.journal import json_line
from rorqual.core.ledger import Ledger, read_ledger
from rorqual.core.progress import clock_text
from rorqual.core.records import Message, TaskDefaults, Thinking, stored_json, write_atomic, write_json
from rorqual.data.chat import ChatFormat, chat_format, load_chat, read_chat_name
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.request import SamplingParams
from rorqual.model.load.run_directory import read_model_config
from rorqual.tasks.examples import ExamplesTask
from rorqual.teach.answer_format import answer_grammar, needs_calculator
from rorqual.teach.answerer import load_predictor
from rorqual.teach.base_model import ChosenBaseModel, find_base_model
from rorqual.teach.climb import Climb
from rorqual.teach.config import TeachConfig
from rorqual.teach.dataset import Dataset, rows_of
from rorqual.teach.examples import Example
from rorqual.teach.measure import BASE_TOKENS, instruction_message, most_shots
from rorqual.teach.paths import EARLIER, TeachPaths
from rorqual.teach.plan import TeachPlan, lengths_of, make_plan, taught_chat_format
from rorqual.teach.rungs.language_model import ALONE, TAUGHT, LanguageModel
from rorqual.teach.rungs.rung import Predictor
from rorqual.teach.train import TeachTraining
from rorqual.train.track import open_trackers

ENOUGH = 2
"""If training has fewer than `ENOUGH` epochs, `teach` suggests more minutes."""
GRPO_SHARE, GRPO_MINUTES = 0.3, 20
"""Share of the training time that GRPO gets, and smallest value of `minutes` for which GRPO is run, because a few steps change
nothing. GRPO is run only if replies have reasoning, or if the user gives a grader."""
PROMPTED_SHARE = 0.05
"""Share of `minutes` that each prompt of the base model gets on the dev split."""
CHEAP, PROMPTED, HELD_OUT, TEACHER = "rungs", "ask the base model", "ask the taught model", "ask the teacher"
"""Stages whose time does not count toward `minutes`."""
UNCOUNTED = (CHEAP, PROMPTED, HELD_OUT, TEACHER, EARLIER)


@dataclass
class ModelStages:
    """The stages for a language model. `begin` prints that a stage begins, and `say` prints a line."""

    config: TeachConfig
    paths: TeachPaths
    threads: int
    ledger: Ledger
    import_progress: BytesProgress
    dataset: Dataset
    train_examples: Sequence[Example]
    climb: Climb
    begin: Callable[[int, str], None]
    say: Callable[[str], None]

    def run(self) -> None:
        """Run all stages for a language model, and add its results to the climb."""
        self.find_base_and_plan()
        self.ask_base_model()
        self.train()
        self.train_with_grpo()
        self.ask_taught_model()

    # ---- base and plan

    def find_base_and_plan(self) -> None:
        """Find or import the base model, and plan the number of training steps. Raises DataError if no example fits into a row."""
        self.begin(3, "choose the base model, and plan")
        with self.ledger.record_stage("base"):
            self.say(f"  {self.base.reason}")
            write_atomic(self.paths.sft_rows, b"".join(map(json_line, rows_of(self.train_examples))))
            plan = self.plan
        self.say(
            f"  {plan.steps:,} steps of {plan.rows} rows of {plan.row} tokens: {plan.epochs:.1f} epochs, {plan.step_seconds:.1f} seconds "
            f"per step in {plan.dtype}, about {clock_text(plan.train_seconds)}; {self.config.minutes:g} minutes in all, without the other rungs"
        )
        if plan.epochs < ENOUGH:
            minutes = math.ceil(self.config.minutes * 3 * ENOUGH / plan.epochs)
            self.say(f"  so few epochs teach little; minutes={minutes} would give about {3 * ENOUGH}")
        if plan.skipped:
            self.say(f"  {plan.skipped:,} examples are longer than a row, and are not trained on")
        if self.params.calculator:
            self.say(
                "  the worked solutions have calculations, so the engine writes their results in every reply (calculator)"
            )

    def _seconds_toward_limit(self) -> float:
        """Return the seconds spent so far in stages that count toward `minutes`."""
        return sum(entry.seconds for entry in read_ledger(self.paths.ledger) if entry.stage not in UNCOUNTED)

    @cached_property
    def base(self) -> ChosenBaseModel:
        """The base model and the reason for the choice."""
        return find_base_model(self.config.base, self.paths.base, self.import_progress)

    @cached_property
    def plan(self) -> TeachPlan:
        """The training plan. It depends on measured time, so it is made once and stored."""

        def make() -> dict[str, Any]:
            return make_plan(
                self.base.run,
                self.paths.sft_rows,
                lengths_of(self.train_examples, self.chat),
                seconds=60 * self.config.minutes - self._seconds_toward_limit(),
                reinforce=0.0 if self.reason_to_skip_grpo else GRPO_SHARE,
                seed=self.config.seed,
                threads=self.threads,
            ).model_dump(mode="json")

        return TeachPlan(**stored_json(self.paths.plan, make))

    @cached_property
    def chat(self) -> ChatFormat:
        """The chat format of the taught model."""
        tokenizer = Tokenizer.load(self.base.run.tokenizer_file)
        return chat_format(tokenizer, taught_chat_format(read_chat_name(self.base.run)))

    @cached_property
    def thinking(self) -> Thinking:
        """The thinking mode of the taught model: whether replies have reasoning before the answer."""
        return "auto" if any(one.reasoning for one in self.train_examples) else "off"

    @cached_property
    def params(self) -> SamplingParams:
        """The sampling parameters of replies: greedy, with the grammar of the answers if the answers have a grammar. The engine
        may write the results of calculations in the replies."""
        return SamplingParams(
            max_tokens=self.plan.max_tokens,
            grammar=answer_grammar(self.train_examples, self.dataset.kind),
            calculator=needs_calculator(self.train_examples),
        )

    @property
    def reason_to_skip_grpo(self) -> str:
        """A sentence that says why no time is planned for GRPO, or ""."""
        if self.thinking == "off" and not self.config.grader:
            return "GRPO is skipped: replies have no reasoning, and training on the answers already optimizes them"
        if self.config.minutes < GRPO_MINUTES:
            return f"GRPO is skipped: below minutes={GRPO_MINUTES}, all time goes to training on the examples"
        return ""

    # ---- the base model with examples in its prompt

    def ask_base_model(self) -> None:
        """Measure the base model on the dev split, without examples in its prompt and with as many as fit."""
        seconds = 60 * PROMPTED_SHARE * self.config.minutes
        with self.ledger.record_stage(PROMPTED):
            for name in self.prompted:
                self.climb.measure_on_dev(
                    name, partial(self.prompted_model, name), fit_seconds=0.0, seconds=seconds, offered=False
                )

    @cached_property
    def prompted(self) -> dict[str, list[Message]]:
        """The turns with which the prompts of the base model begin, by the name of the rung."""
        kind, run = self.dataset.kind, self.base.run
        chat = load_chat(run, Tokenizer.load(run.tokenizer_file))
        lengths = lengths_of([*self.train_examples, *self.climb.dev], chat)
        room = max(one.prompt for one in lengths) + self.base_params.max_tokens
        context = read_model_config(run).max_position_embeddings
        shots = most_shots(self.train_examples, chat, kind, context=context, room=room, seed=self.config.seed)
        opening = [*instruction_message(self.train_examples, kind)]
        return {"base model": opening} | (
            {f"base model, {len(shots) // 2} examples": [*opening, *shots]} if shots else {}
        )

    @property
    def base_params(self) -> SamplingParams:
        """The sampling parameters of the base model. Without a grammar, its replies may be longer, because it may reason first."""
        return (
            self.params
            if self.params.grammar
            else replace(self.params, max_tokens=max(self.params.max_tokens, BASE_TOKENS))
        )

    def prompted_model(self, name: str) -> Predictor:
        """Return the base model with the examples of the rung `name` in its prompt."""
        opening = self.prompted[name]
        return LanguageModel(name, self.base.run, self.base_params, "auto", threads=self.threads, opening=opening)

    # ---- training

    @cached_property
    def training(self) -> TeachTraining:
        """The object that trains the model and measures checkpoints on the dev split."""
        return TeachTraining(
            self.config,
            self.paths,
            self.plan,
            ExamplesTask(self.paths.data, grader=self.config.grader),
            self.params,
            self.thinking,
            self.chat,
            self.reason_to_skip_grpo,
            self.threads,
            self.say,
        )

    def train(self) -> None:
        """Fine-tune the base model on the training examples."""
        self.begin(4, f"train on {len(self.train_examples):,} examples")
        with self.ledger.record_stage("train"), open_trackers(self.config.trackers, self.paths.sft) as observe:
            self.training.train_supervised(self.base.run, observe)

    def train_with_grpo(self) -> None:
        """Train with GRPO if GRPO can help, and write the taught model."""
        self.begin(5, "reinforce")
        with self.ledger.record_stage("reinforce"):
            result = self.training.train_grpo()
            self.say(f"  {result.text}")
            if not self.paths.model.path.exists():
                merge_run(self.paths.grpo if result.used else self.paths.best, self.paths.model.path)
            defaults = TaskDefaults(
                thinking=self.thinking,
                max_tokens=self.params.max_tokens,
                temperature=self.params.temperature,
                grammar=self.params.grammar,
                calculator=self.params.calculator or None,
            )
            write_json(self.paths.model.task_defaults_file, defaults.model_dump(mode="json", exclude_none=True))

    def ask_taught_model(self) -> None:
        """Measure the taught model on the dev split, without and with the calculator if it calculates."""
        stages = ("train", "reinforce")
        seconds = sum(entry.seconds for entry in read_ledger(self.paths.ledger) if entry.stage in stages)
        with self.ledger.record_stage(HELD_OUT):
            for name in (ALONE, TAUGHT) if self.params.calculator else (TAUGHT,):
                self.climb.measure_on_dev(
                    name, partial(load_predictor, self.paths, name, self.threads), fit_seconds=seconds, seconds=math.inf
                )
