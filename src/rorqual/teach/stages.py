"""Teach a small model the task of a file of examples: check, divide, measure baselines, train, reinforce, measure, report.

Each stage writes its results when the stage ends. If the process is killed, the same command resumes with the stage that was
not finished.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from rorqual.convert.merge import merge_run
from rorqual.convert.safetensors_slices import Progress as BytesProgress
from rorqual.core.errors import ConfigError
from rorqual.core.ledger import Ledger, read_ledger
from rorqual.core.lock import acquire_run_lock
from rorqual.core.progress import Progress, clock_text
from rorqual.core.records import TaskDefaults, Thinking, write_atomic, write_json
from rorqual.data.chat import ChatFormat, chat_format, load_chat, read_chat_name
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.request import SamplingParams
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.table import percent
from rorqual.model.load.run_directory import read_model_config
from rorqual.tasks.examples import (
    FACTS_FILE,
    ExamplesTask,
    folder_has_splits,
    load_function,
    read_task_json,
    write_examples,
)
from rorqual.tasks.find import safe_grade
from rorqual.tasks.task import Problem, Verdict
from rorqual.teach.answer_format import answer_grammar, needs_calculator
from rorqual.teach.base_model import ChosenBaseModel, find_base_model
from rorqual.teach.check import FileCheck, check_file
from rorqual.teach.check_page import check_page, check_text, to_json
from rorqual.teach.config import TeachConfig, refuse_other_settings, settings_text
from rorqual.teach.dataset import (
    Dataset,
    divide_examples,
    read_test_file,
    refuse_too_large_file,
    rows_of,
    usable_examples,
)
from rorqual.teach.encoder import Encoder, load_encoder
from rorqual.teach.examples import Example
from rorqual.teach.measure import (
    Baseline,
    BaselineTooSlow,
    base_params,
    evaluate_baseline,
    few_shot_examples,
    measure_base,
    measure_model,
    record_measured_checkpoint,
    test_problems,
)
from rorqual.teach.paths import AFTER, ALONE, TeachPaths
from rorqual.teach.plan import LONGEST_ROW, TeachPlan, lengths_of, make_plan, taught_chat_format
from rorqual.teach.reasons import teacher_reasons
from rorqual.teach.report import write_report
from rorqual.teach.rungs.ladder import rungs_of
from rorqual.teach.rungs.rung import Rung, TrainingRows
from rorqual.teach.rungs.simple import Rule, apply_rule
from rorqual.teach.train import TeachTraining, engine_of
from rorqual.train.track import check_trackers, open_trackers

ENOUGH = 2
"""If training has fewer than `ENOUGH` epochs, `teach` suggests more minutes."""
GRPO_SHARE, GRPO_MINUTES = 0.3, 20
"""Share of the training time that GRPO gets, and smallest value of `minutes` for which GRPO is run, because a few steps change
nothing. GRPO is run only if replies have reasoning, or if the user gives a grader."""
STAGES = 7
BASELINES, TEACHER = "measure the baselines", "ask the teacher"
BASELINE_SECONDS = 600.0
"""Maximum time for measuring the base model with examples in its prompt, unless `minutes` is longer. A baseline that takes
longer is left out."""
UNCOUNTED = (BASELINES, TEACHER)
"""The stages whose time does not count toward `minutes`."""


def teach(config: TeachConfig, out: Path, *, threads: int, import_progress: BytesProgress, api_key: str = "") -> Path:
    """Run all stages in the folder `out`, and return the path of the report. `threads` is the number of worker threads.

    `api_key` is the key of the teacher's server.

    Raises DataError if the file of examples cannot be used, and ConfigError if `out` was written with other settings or another
    file.
    """
    for path in filter(None, (config.file, config.test)):
        refuse_too_large_file(Path(path))
    with acquire_run_lock(out), closing(Ledger(TeachPaths(out).ledger, whole_process=True)) as ledger:
        work = TeachStages(config, TeachPaths(out), threads, ledger, import_progress, api_key)
        work.check_settings()
        work.print_what_will_be_done()
        work.prepare_data()
        work.find_base_and_plan()
        work.measure_baselines()
        work.train()
        work.train_with_grpo()
        work.measure_taught_model()
        work.write_and_show_report()
    model, report = work.paths.model.path, work.paths.report
    seconds = sum(entry.seconds for entry in read_ledger(work.paths.ledger))
    print(f"\ndone in {clock_text(seconds)}; the report is {report}")
    print(f"  try it     rorqual chat {model}\n  serve it   rorqual serve {model} name={out.name}")
    print(f"  export it  rorqual export {model} {out / 'model.gguf'} format=gguf dtype=q8_0")
    print(f"  see what it gets wrong: rorqual failures {out}")
    return report


def seconds_toward_limit(ledger: Path) -> float:
    """Return the seconds spent so far in stages that count toward `minutes`."""
    return sum(entry.seconds for entry in read_ledger(ledger) if entry.stage not in UNCOUNTED)


@dataclass
class TeachStages:
    """The stages of `teach`, and the values that the stages share. Shared values are cached properties, computed at first
    use."""

    config: TeachConfig
    paths: TeachPaths
    threads: int
    ledger: Ledger
    import_progress: BytesProgress
    api_key: str

    def check_settings(self) -> None:
        """Raise an error if the folder was written with other settings or files, or if a grader, rule or tracker does not exist."""
        refuse_other_settings(self.config, self.paths.settings)
        for what in ("grader", "rule"):
            if spec := getattr(self.config, what):
                load_function(spec, what)
        check_trackers(self.config.trackers)
        if self.config.encoder:
            _ = self.encoder  # a wrong folder is found before the work

    def print_what_will_be_done(self) -> None:
        """Print what `rorqual teach` will do, and the time, disk space and money that the command needs."""
        c = self.config
        self._say(
            f"Will check {c.file}, measure baselines, train {c.base or 'SmolLM2-135M-Instruct'}, and measure it on at most {c.count:,} "
            f"test examples.\nTime: about {clock_text(60 * c.minutes)}, and as much again for the baselines. "
            f"Disk: about 1 GB in {self.paths.out}."
        )
        if c.teacher:
            limit = f"at most {c.budget:g} at the given prices" if c.budget else "no budget is set"
            self._say(f"The teacher {c.teacher} is asked for reasons: {limit}.")

    # ---- data

    @cached_property
    def check(self) -> FileCheck:
        """The result of checking the user's file of examples."""
        c = self.config
        return check_file(
            Path(c.file),
            lambda text: len(text.encode()),
            prompt=c.prompt,
            answer=c.answer,
            reasoning=c.reasoning,
            against=Path(c.test) if c.test else None,
        )

    @cached_property
    def dataset(self) -> Dataset:
        """The examples of each split."""
        c = self.config
        named = {"prompt": c.prompt, "answer": c.answer, "reasoning": c.reasoning, "system": self.check.columns.system}
        test = read_test_file(Path(c.test), self.check.kind, **named) if c.test else None
        task = ExamplesTask(self.paths.data, grader=c.grader, kind=self.check.kind)
        most = min(LONGEST_ROW, read_model_config(self.base.run).max_position_embeddings)

        def reason_against(example: Example) -> str:
            """Return why an example cannot be used, or "" if it can. An error of a user's grader names the example's line."""
            meta = {"where": f"{c.file}:{example.line}"}
            problem = Problem(example.key, example.prompt, example.answer, ExamplesTask.name, meta=meta)
            if safe_grade(task, problem, example.answer) is not Verdict.RIGHT:
                return "the grader rejects the answer" if c.grader else f"the answer is no {self.check.kind}"
            [length] = lengths_of([example], self.chat)
            return f"longer than {most:,} tokens" if length.total_tokens > most else ""

        return divide_examples(self.check, test, count=c.count, reason_against=reason_against, graded=bool(c.grader))

    def prepare_data(self) -> None:
        """Check the file, divide the examples, and write the splits. The splits are written only if neither the settings nor
        the file have an error."""
        self._begin_stage(1, "check and divide the examples")
        with self.ledger.record_stage("check"):
            self._say(check_text(self.check, "bytes", splits=False))
            usable_examples(
                self.check, graded=bool(self.config.grader)
            )  # refuses a file before the base model is loaded
            if self.rule is not None:  # a broken rule is found before the base model is loaded
                apply_rule(self.rule, self.check.examples[0].prompt)
            data = self.dataset
            self._write_data()
        for reason, count in data.left_out.items():
            self._say(f"  {count:,} rows are left out: {reason}")
        if data.derived:
            self._say(
                f"  {data.derived:,} worked solutions derived: one calculation with two numbers of the prompt gives the answer"
            )
        if self.config.teacher:
            write_examples(self.paths.data, {"train": rows_of(self.train_examples)}, read_task_json(self.paths.data))
        counts = {split: len(rows) for split, rows in data.splits.items()} | {"train": len(self.train_examples)}
        splits = ", ".join(f"{count:,} {split}" for split, count in counts.items())
        self._say(f"  {splits}; the test split stays sealed until a model is measured")

    def _write_data(self) -> None:
        """Write the settings, the result of the file's check, and the splits. Raise ConfigError if the folder already has other examples."""
        data, folder = self.dataset, self.paths.data
        rows = {split: rows_of(examples) for split, examples in data.splits.items()}
        if not (folder / FACTS_FILE).is_file():
            write_atomic(self.paths.settings, settings_text(self.config).encode())
            write_json(self.paths.out / "check.json", to_json(self.check))
            write_atomic(self.paths.out / "check.html", check_page(self.check, "bytes").encode())
            facts = {"kind": data.kind, "labels": dict(self.check.labels), "left_out": dict(data.left_out)}
            write_examples(folder, rows, facts)
        elif not folder_has_splits(folder, dev=rows["dev"], test=rows["test"]):
            raise ConfigError(
                "the folder has other examples, so another version of Rorqual wrote it",
                where=str(folder),
                remedy="Give another out= to begin anew.",
            )

    @cached_property
    def rule(self) -> Rule | None:
        """The user's rule, which is measured as a baseline, or None."""
        return load_function(self.config.rule, "rule") if self.config.rule else None

    @cached_property
    def train_examples(self) -> Sequence[Example]:
        """The training examples, with the teacher's reasons if there is a teacher."""
        train = self.dataset.splits["train"]
        if not self.config.teacher:
            return train
        if any(one.reasoning for one in train):
            self._say("  the teacher is not asked, because the examples have worked solutions")
            return train
        with self.ledger.record_stage(TEACHER):
            reasons = teacher_reasons(
                self.config,
                train,
                self.dataset.kind,
                self.paths.teacher,
                threads=self.threads,
                api_key=self.api_key,
                say=self._say,
            )
        for note in filter(None, (reasons.stopped, reasons.missing_reasons_note(train))):
            self._say(f"  {note}")
        return reasons.with_reasons(train)

    @cached_property
    def thinking(self) -> Thinking:
        """The thinking mode of the taught model: whether replies have reasoning before the answer."""
        return "auto" if any(one.reasoning for one in self.train_examples) else "off"

    @cached_property
    def encoder(self) -> Encoder | None:
        """The encoder of the rungs that use embeddings, or None with encoder=none. Without a network, the default encoder may be
        missing, and these rungs are left out."""
        if self.config.encoder == "none":
            return None
        try:
            return load_encoder(self.config.encoder)
        except ConfigError as error:
            if self.config.encoder:
                raise
            self._say(f"  without embeddings: {error.what}")
            return None

    def task(self) -> ExamplesTask:
        """Return the task of the data folder. Each task object reads the test split at most once."""
        return ExamplesTask(self.paths.data, grader=self.config.grader)

    # ---- base and plan

    def find_base_and_plan(self) -> None:
        """Find or import the base model, and plan the number of training steps."""
        self._begin_stage(2, "choose the base model, and plan")
        with self.ledger.record_stage("base"):
            self._say(f"  {self.base.reason}")
            if not self.paths.plan.is_file():
                plan = make_plan(
                    self.base.run,
                    self.paths.data,
                    lengths_of(self.train_examples, self.chat),
                    seconds=60 * self.config.minutes - seconds_toward_limit(self.paths.ledger),
                    reinforce=0.0 if self.reason_to_skip_grpo else GRPO_SHARE,
                    seed=self.config.seed,
                    threads=self.threads,
                )
                write_json(self.paths.plan, plan.model_dump(mode="json"))
        plan = self.plan
        self._say(
            f"  {plan.steps:,} steps of {plan.rows} rows of {plan.row} tokens: {plan.epochs:.1f} epochs, {plan.step_seconds:.1f} seconds "
            f"per step in {plan.dtype}, about {clock_text(plan.train_seconds)}; {self.config.minutes:g} minutes in all, without the baselines"
        )
        if plan.epochs < ENOUGH:
            minutes = math.ceil(self.config.minutes * 3 * ENOUGH / plan.epochs)
            self._say(f"  so few epochs teach little; minutes={minutes} would give about {3 * ENOUGH}")
        if plan.skipped:
            self._say(f"  {plan.skipped:,} examples are longer than a row, and are not trained on")
        if self.params.calculator:
            self._say(
                "  the worked solutions have calculations, so the engine writes their results in every reply (calculator)"
            )

    @cached_property
    def base(self) -> ChosenBaseModel:
        """The base model and the reason for the choice."""
        return find_base_model(self.config.base, self.paths.base, self.import_progress)

    @cached_property
    def plan(self) -> TeachPlan:
        """The training plan, read from the file that `find_base_and_plan` wrote."""
        return TeachPlan(**json.loads(self.paths.plan.read_bytes()))

    @cached_property
    def chat(self) -> ChatFormat:
        """The chat format of the taught model."""
        tokenizer = Tokenizer.load(self.base.run.tokenizer_file)
        return chat_format(tokenizer, taught_chat_format(read_chat_name(self.base.run)))

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

    # ---- baselines, training, measurement

    def measure_baselines(self) -> None:
        """Measure the classical baselines and the base model on the test split. Baselines that would take too long are left out."""
        self._begin_stage(3, "measure the baselines (not counted in the minutes)")
        if self.paths.baselines.is_file():
            return
        shots, too_slow = dict[str, list[int]](), list[str]()
        with self.ledger.record_stage(BASELINES):
            for one in self._baseline_methods():
                try:
                    self._measure_and_save(one.name, one.measure)
                except BaselineTooSlow as error:
                    too_slow.append(f"{one.name}: it would take about {clock_text(error.seconds)}")
                    self._say(f"  left out: {too_slow[-1]}")
                else:
                    shots[one.name] = [example.line for example in one.shots]
            write_json(self.paths.baselines, {"names": [*shots], "shots": shots, "left_out": too_slow})

    def _baseline_methods(self) -> Iterator[Baseline]:
        """Yield the classical baselines, then the base model with different numbers of examples in its prompt."""
        base, kind, tests = self.base.run, self.dataset.kind, self.dataset.splits["test"]
        task = record_measured_checkpoint(self.task(), base)
        problems = test_problems(task)
        ordered = sorted(tests, key=lambda one: one.key)
        rows = TrainingRows(self.dataset.all_train, kind)

        def measure_rung(rung: Rung) -> Evaluation:
            rung.fit(rows)
            guesses = rung.predict([one.prompt for one in ordered])
            return evaluate_baseline(rung.name, task, problems, [guess.answer for guess in guesses])

        for rung in rungs_of(kind, rule=self.rule, rule_spec=self.config.rule, encoder=self.encoder):
            yield Baseline(rung.name, partial(measure_rung, rung))
        chat = load_chat(base, Tokenizer.load(base.tokenizer_file))
        context = read_model_config(base).max_position_embeddings
        lengths = lengths_of([*self.train_examples, *tests], chat)
        room = max(one.prompt for one in lengths) + base_params(self.params).max_tokens
        most_seconds = max(BASELINE_SECONDS, 60 * self.config.minutes)
        train = self.train_examples
        prompts = few_shot_examples(train, chat, kind, context=context, room=room, seed=self.config.seed)
        for name, shots in prompts.items():
            show = self._progress_bar(name, len(problems))
            measure = partial(
                measure_base, base, task, name, shots, train, self.params, most_seconds=most_seconds, show=show
            )
            yield Baseline(name, measure, shots)

    def _measure_and_save(self, name: str, measure: Callable[[], Evaluation]) -> None:
        """Measure a model or baseline, unless its result file exists, and print the accuracy."""
        path = self.paths.evaluation_file(name)
        if not path.is_file():
            measure().save(path)
        [row] = Evaluation.load(path).rows("all")
        self._say(f"  {name}: {percent(row.accuracy)} % right")

    @cached_property
    def training(self) -> TeachTraining:
        """The object that trains the model and measures checkpoints on the dev split."""
        return TeachTraining(
            self.config,
            self.paths,
            self.plan,
            self.task(),
            self.params,
            self.thinking,
            self.chat,
            self.reason_to_skip_grpo,
            self.threads,
            self._say,
        )

    def train(self) -> None:
        """Fine-tune the base model on the training examples."""
        self._begin_stage(4, f"train on {len(self.train_examples):,} examples")
        with self.ledger.record_stage("train"), open_trackers(self.config.trackers, self.paths.sft) as observe:
            self.training.train_supervised(self.base.run, observe)

    def train_with_grpo(self) -> None:
        """Train with GRPO if GRPO can help, and write the taught model."""
        self._begin_stage(5, "reinforce")
        with self.ledger.record_stage("reinforce"):
            result = self.training.train_grpo()
            self._say(f"  {result.text}")
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

    def measure_taught_model(self) -> None:
        """Measure the taught model on the test split."""
        self._begin_stage(6, "measure the taught model")
        if self.paths.evaluation_file(AFTER).is_file():
            return
        with self.ledger.record_stage("measure"):
            task = record_measured_checkpoint(self.task(), self.paths.model)
            problems = test_problems(task)
            engine = engine_of(self.paths.model, self.threads)
            ways = {ALONE: replace(self.params, calculator=False)} if self.params.calculator else {}
            for name, params in (ways | {AFTER: self.params}).items():
                bar = self._progress_bar(name, len(problems))
                self._measure_and_save(
                    name, partial(measure_model, engine, task, problems, name, params, self.thinking, show=bar)
                )

    def write_and_show_report(self) -> None:
        """Write the report, and print its first sentences."""
        self._begin_stage(7, "report")
        with self.ledger.record_stage("report"):
            text = write_report(self.paths, self.config, self.dataset, self.plan, self.base.reason)
        print(f"\n{text}")

    # ---- output

    def _begin_stage(self, number: int, title: str) -> None:
        """Print which stage begins, and store the largest memory of the process so far."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        known = json.loads(self.paths.memory.read_bytes())["peak_bytes"] if self.paths.memory.exists() else 0
        write_json(self.paths.memory, {"peak_bytes": max(peak, known)})
        self._say(f"\n{number}/{STAGES} {title}")

    def _say(self, text: str) -> None:
        if not self.config.quiet:
            print(text, flush=True)

    def _progress_bar(self, name: str, total: int) -> Callable[[int, int], None]:
        bar = None if self.config.quiet else Progress(name, total, unit="answer")
        return lambda done, _: None if bar is None else bar.update(done)
