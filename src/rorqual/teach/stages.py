"""Teach a task from a file of examples: check and divide it, climb the rungs from the cheapest to a trained language model, choose one
by held-out examples, open the test split, and report.

Each stage writes its results when the stage ends. If the process is killed, the same command resumes with the stage that was
not finished.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from threadpoolctl import threadpool_limits

from rorqual.convert.safetensors_slices import Progress as BytesProgress
from rorqual.core.errors import ConfigError, DataError, suggest_name
from rorqual.core.ledger import Ledger, read_ledger
from rorqual.core.lock import acquire_run_lock
from rorqual.core.progress import clock_text
from rorqual.core.records import stored_json, write_atomic, write_json
from rorqual.data.fingerprint import fingerprint
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.table import percent
from rorqual.tasks.examples import (
    FACTS_FILE,
    ExamplesTask,
    folder_has_splits,
    load_function,
    write_examples,
)
from rorqual.tasks.find import safe_grade
from rorqual.tasks.task import Problem, Verdict
from rorqual.teach.answerer import AnswererConfig, load_answerer, load_predictor, save_answerer
from rorqual.teach.base_model import refuse_unknown_base
from rorqual.teach.cascade import cascade_table
from rorqual.teach.check import FileCheck, check_file
from rorqual.teach.check_page import check_page, check_text, to_json
from rorqual.teach.climb import Climb
from rorqual.teach.config import TeachConfig, has_more_minutes, settings_text
from rorqual.teach.contract import warning
from rorqual.teach.dataset import (
    Dataset,
    divide_examples,
    read_test_file,
    refuse_too_large_file,
    rows_of,
    usable_examples,
)
from rorqual.teach.encoder import Encoder, find_encoder
from rorqual.teach.examples import Example
from rorqual.teach.held_out import WITH_WRITTEN, HeldOut, best_other, cannot_be_beaten, clearly_beats
from rorqual.teach.measure import evaluate_guesses, test_problems
from rorqual.teach.model_stages import CHEAP, TEACHER, ModelStages
from rorqual.teach.paths import TeachPaths
from rorqual.teach.promise import possible_promises
from rorqual.teach.reasons import TeacherReasons, teacher_reasons
from rorqual.teach.report import suspects_command, write_report
from rorqual.teach.results import USUAL, TeachResults
from rorqual.teach.rungs.ladder import rungs_of
from rorqual.teach.rungs.language_model import ALONE, TAUGHT
from rorqual.teach.rungs.rung import Guess, Predictor, Rung
from rorqual.teach.rungs.simple import MAJORITY, Rule, apply_rule
from rorqual.teach.written import gain_sentences, written_rows
from rorqual.train.track import check_trackers

STAGES = 7
RUNG_SHARE = 0.2
"""The largest share of `minutes` for the cross-validation of a rung without a language model. Folds that would take longer are left out."""
NONE = "none"
"""The value of `base` and `encoder` for no model."""


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
        work.climb_cheap_rungs()
        work.climb_with_language_model()
        work.choose_and_open_test_split()
        work.write_and_show_report()
    report, model = work.paths.report, work.paths.model.path
    seconds = sum(entry.seconds for entry in read_ledger(work.paths.ledger))
    print(f"\ndone in {clock_text(seconds)}; the report is {report}")
    if refusal := warning(work.chosen[0]):
        print(f"  {refusal}")
    elif work.climb.forced or work.climb.best.name != MAJORITY:
        print(f"  try it    rorqual chat {out}\n  serve it  rorqual serve {out}")
    if model.exists():
        print(f"  export the language model  rorqual export {model} {out / 'model.gguf'} format=gguf dtype=q8_0")
    print(f"  see what it gets wrong: rorqual failures {out}")
    if work.dataset.kind == "label":
        print(f"  maybe mislabelled: {suspects_command(config)}")
    return report


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
        longer = has_more_minutes(self.config, self.paths.settings)
        for what in ("grader", "rule"):
            if spec := getattr(self.config, what):
                load_function(spec, what)
        check_trackers(self.config.trackers)
        if self.config.base not in ("", NONE):
            refuse_unknown_base(self.config.base)
        if self.config.encoder:
            _ = self.encoder  # a wrong folder is found before the work
        if longer:  # after all checks
            self._say("The language model is trained anew, because there are more minutes.")
            self.paths.remove_language_model()
        if self.paths.settings.is_file():
            write_atomic(self.paths.settings, settings_text(self.config).encode())

    def print_what_will_be_done(self) -> None:
        """Print what `rorqual teach` will do, and the time, disk space and money that the command needs."""
        c = self.config
        trains = c.base != NONE and c.rung in ("", TAUGHT)
        model = f"{c.base or 'SmolLM2-135M-Instruct'} in {c.minutes:g} minutes" if trains else "no language model"
        self._say(
            f"Will check {c.file}, measure methods from the cheapest to the costliest, train {model}, and open at most {c.count:,} "
            f"test examples for the best two.\nDisk: {'about 1' if trains else '0.1'} GB in {self.paths.out}."
        )
        if c.teacher:
            limit = f"at most {c.budget:g} at the given prices" if c.budget else "no budget is set"
            self._say(
                f"The teacher {c.teacher} is asked for {f'{c.write:,} new rows' if c.write else 'reasons'}: {limit}."
            )

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

        def reason_against(example: Example) -> str:
            """Return why an example cannot be used, or "" if it can. An error of a user's grader names the example's line."""
            if self.grade(example, example.answer):
                return ""
            return "the grader rejects the answer" if c.grader else f"the answer is no {self.check.kind}"

        return divide_examples(self.check, test, count=c.count, reason_against=reason_against, graded=bool(c.grader))

    @cached_property
    def _grading(self) -> ExamplesTask:
        return ExamplesTask(self.paths.data, grader=self.config.grader, kind=self.check.kind)

    def grade(self, example: Example, reply: str) -> bool:
        """Return whether `reply` is a right answer to the example."""
        meta = {"where": f"{self.config.file}:{example.line}"}
        problem = Problem(example.key, example.prompt, example.answer, ExamplesTask.name, meta=meta)
        return bool(reply) and safe_grade(self._grading, problem, reply) is Verdict.RIGHT

    def prepare_data(self) -> None:
        """Check the file, divide the examples, and write the splits. The splits are written only if neither the settings nor
        the file have an error."""
        self._begin_stage(1, "check and divide the examples")
        with self.ledger.record_stage("check"):
            self._say(check_text(self.check, "bytes", splits=False))
            if self.rule is not None:  # a broken rule is found before any work
                usable_examples(self.check, graded=bool(self.config.grader))
                apply_rule(self.rule, self.check.examples[0].prompt)
            data = self.dataset
            self._refuse_unknown_rung()
            self._write_data()
        for reason, count in data.left_out.items():
            self._say(f"  {count:,} rows are left out: {reason}")
        if data.derived:
            self._say(
                f"  {data.derived:,} worked solutions derived: one calculation with two numbers of the prompt gives the answer"
            )
        counts = {split: len(rows) for split, rows in data.splits.items()} | {"train": len(self.train_examples)}
        splits = ", ".join(f"{count:,} {split}" for split, count in counts.items())
        self._say(f"  {splits}; the test split stays sealed until two rungs are chosen")

    def _write_data(self) -> None:
        """Write the settings, the result of the file's check, and the splits. Raise ConfigError if the folder already has other examples."""
        data, folder = self.dataset, self.paths.data
        rows = {split: rows_of(examples) for split, examples in data.splits.items()} | {
            "train": rows_of(data.all_train)
        }
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
    def train_examples(self) -> list[Example]:
        """The training examples of the file, with the teacher's reasons if it is asked for reasons."""
        train = [*self.dataset.splits["train"]]
        if not self.config.teacher or self.config.write:
            return train
        if any(one.reasoning for one in train):
            self._say("  the teacher is not asked, because the examples have worked solutions")
            return train
        with self.ledger.record_stage(TEACHER):
            ask = partial(
                teacher_reasons,
                self.config,
                train,
                self.dataset.kind,
                self.paths.teacher,
                threads=self.threads,
                api_key=self.api_key,
                say=self._say,
            )
            reasons = TeacherReasons(**stored_json(self.paths.reasons, lambda: vars(ask())))
        for note in filter(None, (reasons.stopped, reasons.missing_reasons_note(train))):
            self._say(f"  {note}")
        return [*reasons.with_reasons(train)]

    # ---- rungs without a language model

    @cached_property
    def rule(self) -> Rule | None:
        """The user's rule, which is a rung, or None."""
        return load_function(self.config.rule, "rule") if self.config.rule else None

    @cached_property
    def encoder(self) -> Encoder | None:
        """The encoder of the rungs that use embeddings, or None: these rungs are left out then."""
        return find_encoder(self.config.encoder, self._say)

    @cached_property
    def climb(self) -> Climb:
        """The results of the rungs so far."""
        data = self.dataset
        return Climb(self.paths, data.pool, data.fold, data.kind, self.grade, self._say, bool(self.config.rung))

    @cached_property
    def rungs(self) -> dict[str, Rung]:
        """The rungs without a language model, by name, from the cheapest to the costliest."""
        return {rung.name: rung for rung in self._new_rungs()}

    def _new_rungs(self) -> Iterator[Rung]:
        return rungs_of(self.dataset.kind, rule=self.rule, rule_spec=self.config.rule, encoder=self.encoder)

    def climb_cheap_rungs(self) -> None:
        """Measure the rungs without a language model by cross-validation. The best of those that take little time can be asked at once."""
        self._begin_stage(2, f"cross-validate the rungs on {len(self.climb.pool):,} examples")
        seconds, offered = 60 * RUNG_SHARE * self.config.minutes, False
        with self.ledger.record_stage(CHEAP), threadpool_limits(1):  # small products are fastest on one core
            for rung in self.rungs.values():
                if rung.slow and not offered:
                    self._offer_best()
                    offered = True
                if rung.slow and self.config.rung not in ("", rung.name):
                    self.climb.skip(rung.name, f"rung={self.config.rung}")
                elif rung.slow and not self.config.rung and cannot_be_beaten(self.climb.best):
                    self.climb.skip(rung.name, self._unbeatable)
                else:
                    self.climb.cross_validate(rung, seconds)
            self._offer_best()
        if self.config.write:
            self._climb_with_written_rows(seconds)

    def _climb_with_written_rows(self, seconds: float) -> None:
        """Let the teacher write rows, and measure with them the rungs that the best one does not clearly beat, as rungs of their own."""
        best = self.climb.best
        if cannot_be_beaten(best):
            self.climb.skip(best.name + WITH_WRITTEN, self._unbeatable)
            return
        with self.ledger.record_stage(TEACHER):
            self.climb.written = written_rows(
                self.config,
                self.dataset,
                self.grade,
                self.paths.teacher,
                threads=self.threads,
                api_key=self.api_key,
                say=self._say,
            )
        if not self.climb.written:
            self.climb.skip(best.name + WITH_WRITTEN, "no written row can be used")
            return
        measured = {one.name for one in self.climb.results if not clearly_beats(best, one)}
        with self.ledger.record_stage(CHEAP), threadpool_limits(1):
            for rung in self._new_rungs():
                if rung.name in measured:
                    rung.name += WITH_WRITTEN
                    self.rungs[rung.name] = rung
                    self.climb.cross_validate(rung, seconds)

    def _refuse_unknown_rung(self) -> None:
        models = [] if self.config.base == NONE else [TAUGHT]
        if self.config.rung and self.config.rung not in models and self.config.rung not in self.rungs:
            raise ConfigError(
                f"no rung '{self.config.rung}' for answers of the kind {self.dataset.kind}",
                where="key 'rung'",
                remedy=suggest_name(self.config.rung, [*self.rungs, *models]),
            )

    @property
    def _unbeatable(self) -> str:
        return f"even a method without an error would not clearly beat {self.climb.best.name}"

    def _offer_best(self) -> None:
        """Fit and save the best rung so far, so that it can be asked while the command goes on."""
        best = self.climb.best
        if not self.paths.choice.is_file():
            for name in (config := self.climb.answerer(best, self.config.promise, self.check.columns)[0]).rungs:
                self.climb.fit_and_save(self.rungs[name])
            save_answerer(self.paths, config)
            self._say(f"  the best so far can be asked: rorqual chat {self.paths.out}  ({best.name})")

    @property
    def chosen(self) -> tuple[AnswererConfig, HeldOut]:
        """The answerer that is used, and its held-out answers."""
        best = self.climb.result(self.config.rung) if self.config.rung else self.climb.best
        return self.climb.answerer(best, self.config.promise, self.check.columns)

    # ---- rungs with a language model

    @cached_property
    def model(self) -> ModelStages:
        """The stages for a language model. It is trained on the written rows, too, if these are used by the best rung so far."""
        written = self.climb.written
        used = bool(written) and self.climb.best.name.endswith(WITH_WRITTEN)
        return ModelStages(
            self.config,
            self.paths,
            self.threads,
            self.ledger,
            self.import_progress,
            self.dataset,
            [*self.train_examples, *(written if used else ())],
            self.climb,
            self._begin_stage,
            self._say,
        )

    def climb_with_language_model(self) -> None:
        """Train and measure a language model, unless it is not wanted or cannot win."""
        if reason := self._reason_to_skip_model():
            self.climb.skip(TAUGHT, reason)
            return
        try:
            self.model.run()
        except DataError as error:
            if error.where != str(self.paths.sft_rows) or self.config.rung:
                raise
            self.climb.skip(TAUGHT, error.what)  # no example fits into the model's context

    def _reason_to_skip_model(self) -> str:
        if self.config.base == NONE:
            return "base=none"
        if self.config.rung not in ("", TAUGHT):
            return f"rung={self.config.rung}"
        return self._unbeatable if not self.config.rung and cannot_be_beaten(self.climb.best) else ""

    # ---- choice and test

    def choose_and_open_test_split(self) -> None:
        """Choose a rung and the best other one by their held-out answers, and measure both on the test split."""
        self._begin_stage(6, "choose a rung, and open the test split")
        climb = self.climb
        with self.ledger.record_stage("test"):
            config, chosen = self.chosen
            other = best_other(climb.results, chosen)
            self._say(f"  chosen: {chosen.name}; beside it on the test split: {other.name}")
            for name in (*config.rungs, other.name):
                if name in self.rungs:
                    climb.fit_and_save(self.rungs[name])
            choice = {"chosen": chosen.name, "other": other.name}
            measured = [self.paths.evaluation_file(name).is_file() for name in choice.values()]
            is_done = (
                self.paths.choice.is_file() and all(measured) and json.loads(self.paths.choice.read_bytes()) == choice
            )
            write_json(self.paths.choice, choice)
            save_answerer(self.paths, config)
            if is_done:
                return
            task = ExamplesTask(self.paths.data, grader=self.config.grader)
            if {TAUGHT, ALONE} & {*config.rungs, other.name}:
                task.checkpoint = fingerprint(self.paths.model, self.paths.model.checkpoint())
            problems = test_problems(task)
            prompts = [one.prompt for one in problems]
            answers = load_answerer(self.paths.out, threads=self.threads).answer(prompts)
            sure = {one.key: answer.probability for one, answer in zip(problems, answers, strict=True)}
            write_json(self.paths.test_probabilities, sure)
            guesses = [Guess(one.text, one.probability, one.reasoning) for one in answers]
            for name, found in ((chosen.name, guesses), (other.name, self._predictor(other.name).predict(prompts))):
                evaluation = evaluate_guesses(name, task, problems, found)
                evaluation.save(self.paths.evaluation_file(name))
                [row] = evaluation.rows("all")
                self._say(f"  {name}: {percent(row.accuracy)} % of {row.graded:,} test examples right")

    def _predictor(self, name: str) -> Predictor:
        """Return the fitted rung `name` as it is served."""
        if name not in self.rungs and name not in (TAUGHT, ALONE):
            return self.model.prompted_model(name)
        return load_predictor(self.paths, name, self.threads)

    def write_and_show_report(self) -> None:
        """Write the report, and print its first sentences."""
        self._begin_stage(7, "report")
        with self.ledger.record_stage("report"):
            base = "" if TAUGHT in self.climb.skipped else self.model.base.reason
            text = write_report(self.paths, self.config, self.dataset, self._results(), base)
        print(f"\n{text}")

    def _results(self) -> TeachResults:
        paths, climb, asked = self.paths, self.climb, self.config.promise
        names = json.loads(paths.choice.read_bytes())
        chosen, other = (Evaluation.load(paths.evaluation_file(names[key])) for key in ("chosen", "other"))
        best = climb.result(self.config.rung) if self.config.rung else climb.best
        config, answered = climb.answerer(best, asked or USUAL, self.check.columns)
        files = {one.name: paths.rung_file(one.name) for one in climb.results}
        return TeachResults(
            [*climb.results, *([answered] if len(config.steps) > 1 else [])],
            climb.skipped,
            chosen,
            other,
            forced=climb.forced,
            asked=asked,
            possible=config.promise,
            promises=possible_promises([*answered.probability.values()], [*answered.right.values()])
            if not {TAUGHT, ALONE} & {*config.rungs}
            else [],
            probability=json.loads(paths.test_probabilities.read_bytes()),
            sizes={name: file.stat().st_size for name, file in files.items() if file.is_file()},
            levels=[cascade_table(config.steps[0], climb.result(config.steps[0].rung), best)]
            if len(config.steps) > 1
            else [],
            gains=gain_sentences(climb.results, len(climb.written), self.config.model or self.config.teacher),
        )

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
