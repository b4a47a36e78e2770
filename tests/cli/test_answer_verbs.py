"""`rorqual eval` with a cascade or a verifier: what reaches the evaluation, what is written, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from in_process import output_of
from rorqual.core.records import RunDir
from rorqual.data.fingerprint import fingerprint
from rorqual.engine.engine import Engine
from rorqual.engine.request import SamplingParams
from rorqual.evals.cascade import Cascade, calibrate
from rorqual.evals.evaluating import evaluate
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.trained_verifier import with_verifier_scores
from rorqual.model.account import account
from rorqual.model.load.run_directory import read_model_config
from rorqual.recipes import make_run
from rorqual.tasks.find import load_task
from rorqual.train.loop import fit


class Killed(Exception):
    """Ends a command where a signal would."""


ASKED = (
    "task=families:add,sub",
    "count=12",
    "seed=3",
    "threads=1",
    "max_tokens=8",
    "thinking=off",
    "options={hard: 0.5}",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `run` and `large`, whose answers end."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("run", 0), ("large", 8)):
        settings = {
            "task": "families:add,sub,swap",
            "size": "tiny",
            "steps": "60",
            "rows": "8",
            "think": "0",
            "seed": str(seed),
        }
        fit(make_run("sft", settings), RunDir(folder / name), quiet=True)
    return folder


@pytest.fixture
def here(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "place"
    shutil.copytree(runs, place)
    monkeypatch.chdir(place)
    return place


def expected(run: str, split: Any, families: str = "families:add,sub", **params: Any) -> Evaluation:
    task = load_task(families, options={"hard": 0.5})
    sampling = SamplingParams(**{"max_tokens": 8, "seed": 3, **params})
    return evaluate(
        Engine(run, record_experts=False, threads=1), task, split=split, count=12, seed=3, thinking="off", params=sampling,
        model=run, votes=sampling.n > 1,
    )  # fmt: skip


def same(a: Evaluation, b: Evaluation) -> bool:
    return a.model_copy(update={"seconds": 0.0}) == b.model_copy(update={"seconds": 0.0})


def flops_of(run: str, answers: Evaluation) -> dict[str, float]:
    """The definition, token by token: each token that is read attends to itself and all before it; the prompt is read once."""
    config = read_model_config(RunDir(Path(run)))
    head = 2 * config.hidden_size * config.vocab_size
    found = dict[str, float]()
    for key, samples in answers.samples_by_problem.items():
        prompt = samples[0].prompt_tokens
        read = [*range(1, prompt + 1)]
        for one in samples:
            assert one.prompt_tokens == prompt > 5
            read += range(prompt + 1, prompt + one.tokens)  # the last token is not read again
        sampled = sum(one.tokens for one in samples)
        found[key] = sum(account(config, context=keys).flops - head for keys in read) + head * sampled
    return found


def test_a_cascade_evaluates_both_models_and_calibrates_on_dev(here: Path) -> None:
    text = output_of("eval", "cascade=run,large", *ASKED, "sure=0.3", "out=c.json", "page=p.html")
    found = Cascade.model_validate_json(Path("c.json").read_bytes())
    assert same(found.student, expected("run", "test")) and same(found.teacher, expected("large", "test"))
    assert found.calibration == calibrate(expected("run", "dev")) and found.sure == 0.3
    for place, run, answers in zip((0, 1), ("run", "large"), (found.student, found.teacher), strict=True):
        assert (found.flops or ())[place] == pytest.approx(flops_of(run, answers))
    prints = tuple(fingerprint(run, run.checkpoint()) for run in map(RunDir, map(Path, ("run", "large"))))
    assert found.fingerprints == prints and prints[0] != prints[1]
    assert any(not sample.truncated for sample in found.student.samples), "a confidence of 0 everywhere shows nothing"
    assert "cascade, sure=0.3" in text and "calibrated on the dev" in text and "c.json" in text
    assert "A cascade of two models" in Path("p.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in here.iterdir()) == ["c.json", "large", "p.html", "run"]
    assert not (here / "run" / "evals").exists(), "the result of a cascade is no result of the student"


def test_the_student_of_a_cascade_votes_and_the_teacher_answers_once(here: Path) -> None:
    words = [word for word in ASKED if not word.startswith(("task", "max_tokens"))]
    output_of(
        "eval",
        "cascade=run,large",
        *words,
        "task=families:swap",
        "max_tokens=1",
        "votes=3",
        "temperature=0.3",
        "out=c.json",
    )
    found, given = (
        Cascade.model_validate_json(Path("c.json").read_bytes()),
        {"families": "families:swap", "max_tokens": 1, "temperature": 0.3},
    )
    assert same(found.student, expected("run", "test", **given, n=3))
    assert same(found.teacher, expected("large", "test", **given | {"temperature": 0.0}, n=1)), "greedily"
    assert found.calibration == calibrate(expected("run", "dev", **given, n=3)) and found.calibration.signal == "votes"
    assert found.flops == (
        pytest.approx(flops_of("run", found.student)),
        pytest.approx(flops_of("large", found.teacher)),
    )


@pytest.mark.parametrize(
    ("model", "words", "what"),
    [
        ("cascade=run", (), "'run' names 1 models"),
        ("cascade=run,large,run", (), "names 3 models"),
        ("cascade=run,none", (), "none: not a run directory"),
        ("cascade=run,large", ("split=dev",), "calibrated on the dev split"),
        ("cascade=run,large", ("refine=1",), "a cascade does not use the key 'refine'"),
        ("cascade=run,large", ("best_of=2", "temperature=1"), "a cascade does not use the key 'best_of'"),
        (
            "cascade=run,large",
            ("votes=2", "temperature=1", "stop_when=sure"),
            "a cascade does not use the key 'stop_when'",
        ),
        ("cascade=run,large", ("sure=2",), "key 'sure'"),
        ("cascade=http://a,run", (), "a server returns no log-probabilities"),
        ("cascade=http://a,http://b", ("votes=2", "temperature=1"), "only one of the two models may be a server"),
        ("run", ("sure=0.5",), "only a cascade has the key 'sure'"),
        ("run", ("verifier_data=x.jsonl",), "would train a verifier on problems that measure it"),
        ("run", ("split=train", "verifier_data=x.jsonl", "out=x.jsonl"), "verifier_data and out are the same file"),
        ("run", ("split=train", "verifier_data=run.txt/x.jsonl"), "run.txt"),
        ("cascade=run,large", ("page=p.html", "out=run/run.yaml/x"), "run/run.yaml"),
    ],
)
def test_bad_cascades_are_refused(here: Path, model: str, words: tuple[str, ...], what: str) -> None:
    (here / "run.txt").write_text("a file, not a folder", encoding="utf-8")
    assert what in output_of("eval", model, *ASKED, *words, code=2).replace("\n", " ")


def test_too_few_problems_and_a_missing_task_are_refused_before_the_first_answer(here: Path) -> None:
    few = [word if not word.startswith("count") else "count=9" for word in ASKED]
    assert "count=9 is too few for a calibration" in output_of("eval", "cascade=run,large", *few, code=2)
    assert "a cascade answers problems" in output_of("eval", "cascade=run,large", "data=x.txt", code=2)
    assert "the key 'votes' needs problems" in output_of(
        "eval", "run", "data=x.txt", "votes=2", "temperature=1", code=2
    )


def test_verifier_data_and_verifier_reach_the_evaluation(here: Path) -> None:
    words = [word for word in ASKED if "max_tokens" not in word] + ["max_tokens=3", "temperature=1"]
    text = output_of("eval", "run", *words, "samples=4", "verifier_data=rows.jsonl", "out=graded.json", "split=train")
    graded = Evaluation.load(Path("graded.json"))
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(graded.samples) and "48 graded samples" in text
    settings = {"data": "rows.jsonl", "size": "tiny", "steps": "80", "rows": "4", "lr": "0.01"}
    fit(make_run("sft", settings), RunDir(Path("judge")), quiet=True)
    text = output_of("eval", "run", *words, "best_of=4", "verifier=judge", "out=best.json")
    found = Evaluation.load(Path("best.json"))
    judge = Engine("judge", record_experts=False)
    assert [s.score for s in found.samples] == pytest.approx(
        [s.score for s in with_verifier_scores(found, judge).samples], abs=1e-5
    )
    assert "best by verifier" in text and "majority" not in text.partition("one answer from")[2]
    others = ["task=families:swap", *words[1:]]
    assert "majority weighted by verifier" in output_of(
        "eval", "run", *others, "votes=4", "verifier=judge", "out=votes.json"
    )
    refused = output_of("eval", "run", *words, "best_of=4", "verifier=large", "out=bad.json", code=2)
    assert (
        "verifier=large: this run answers 'yes' or 'no'" in refused.replace("\n", " ") and not Path("bad.json").exists()
    )
    assert "answer/s" not in refused and not list(here.glob("bad*")), "before the first answer"
    assert "nothing: not a run directory" in output_of("eval", "run", *words, "best_of=4", "verifier=nothing", code=2)


def test_the_verifier_is_loaded_as_the_model_is(here: Path, engines: list[dict[str, Any]]) -> None:
    words = ("dtype=bfloat16", "backend=torch", "out=e.json")
    judged = ("best_of=2", "temperature=1", "verifier=large")
    assert "verifier=large" in output_of("eval", "run", *ASKED, *judged, *words, code=2)
    assert [one["run"] for one in engines] == ["large"], "the verifier alone, so that a bad one costs no answers"
    output_of("eval", "run", *ASKED, *words)
    assert [one.pop("run") for one in engines] == ["large", "run"]
    assert engines[0] == engines[1] and engines[0]["backend"] == "torch" and engines[0]["threads"] == 1


def test_answers_that_were_kept_have_their_log_probabilities(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = expected("run", "test", n=2, temperature=1.0)
    real = Evaluation.save
    monkeypatch.setattr(Evaluation, "save", lambda *_: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        output_of("eval", "run", *ASKED, "votes=2", "temperature=1", "out=e.json")
    monkeypatch.setattr(Evaluation, "save", real)
    monkeypatch.setattr(Engine, "generate", None)
    output_of("eval", "run", *ASKED, "votes=2", "temperature=1", "out=e.json")
    found = Evaluation.load(Path("e.json"))
    assert [s.logprob for s in found.samples] == [s.logprob for s in whole.samples] != [None] * 24
