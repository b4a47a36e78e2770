"""A run that was killed, torn or out of disk goes on to the very bits of a straight one."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from little import WEIGHTS, grpo_run, interrupted_at, on_policy_run, records, same, sft_run, train_with

from rorqual.core.config import read_yaml
from rorqual.core.errors import ConfigError, RorqualError
from rorqual.core.records import MANIFEST_FILE, RunDir
from rorqual.data.tokenizer import Tokenizer
from rorqual.engine.engine import Engine
from rorqual.model import Decoder
from rorqual.recipes.grpo import grpo
from rorqual.recipes.pretrain import pretrain
from rorqual.recipes.sft import sft
from rorqual.train.loop import fit
from rorqual.train.run import Run
from rorqual.train.schedule import LearningRateSchedule
from rorqual.train.sources import Source, StepBatches

STEPS = 8


def child(run: Run, out: Path) -> None:
    fit(run, RunDir(out), quiet=True)


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Children that begin with torch imported already, and with what its optimizers import when the first one is built."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["rorqual.train.loop", "torch._dynamo"])
    return forks


@pytest.fixture(scope="module")
def straight(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both recipes without an interruption, in two threads."""
    out = tmp_path_factory.mktemp("straight")
    for recipe in ("sft", "grpo"):
        fit(the_run(recipe, base), RunDir(out / recipe), quiet=True, threads=2)
    return {recipe: out / recipe for recipe in ("sft", "grpo")}


def the_run(recipe: str, base: Path, every: float = 1e-9) -> Run:
    return (sft_run(STEPS) if recipe == "sft" else grpo_run(base, 5)).model_copy(update={"save_seconds": every})


def lines(out: Path) -> int:
    file = RunDir(out).metrics_file
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def killed(context: ForkServerContext, run: Run, out: Path, rng: random.Random) -> bool:
    """Start the run and kill it a moment after a random step; False where it had ended by then."""
    process = context.Process(target=child, args=(run, out))
    process.start()
    wanted = lines(out) + rng.randrange(3)
    while process.is_alive() and lines(out) < wanted:
        time.sleep(0.002)
    time.sleep(rng.random() * 0.05)
    process.kill()
    process.join()
    return process.exitcode == -9


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("recipe", ["sft", "grpo"])
def test_killed_often(
    recipe: str, seed: int, base: Path, straight: dict[str, Path], tmp_path: Path, context: ForkServerContext
) -> None:
    rng, out = random.Random(seed), tmp_path / "run"
    run = the_run(recipe, base, every=rng.choice([1e-9, 0.05, 0.3]))
    while killed(context, run, out, rng) and rng.random() < 0.8:
        pass
    child(run, out)
    same(straight[recipe], out)


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A run that stands at step 4 of 8, with checkpoints of steps 3 and 4 and a record of step 5."""
    out = tmp_path / "half"
    with pytest.raises(KeyboardInterrupt):
        train_with(sft_run(STEPS), RunDir(out), interrupted_at(5))
    shutil.rmtree(out / "step-000005")
    assert RunDir(out).steps() == [4] and lines(out) == 5
    return out


def test_ctrl_c_and_records_after_the_checkpoint(half: Path, straight: dict[str, Path]) -> None:
    fit(sft_run(STEPS), RunDir(half), quiet=True)
    same(straight["sft"], half)


def test_records_of_a_run_that_never_kept_a_checkpoint_are_not_kept_twice(
    half: Path, straight: dict[str, Path]
) -> None:
    shutil.rmtree(half / "step-000004")
    fit(sft_run(STEPS), RunDir(half), quiet=True)
    same(straight["sft"], half)


def tear(folder: Path, how: str) -> None:
    file = folder / (MANIFEST_FILE if how == "no list" else WEIGHTS)
    if how == "short":
        os.truncate(file, file.stat().st_size // 2)
    elif how == "list cut":
        os.truncate(folder / MANIFEST_FILE, 5)
    else:
        file.unlink()


@pytest.mark.parametrize("how", ["short", "missing", "no list", "list cut"])
def test_a_torn_checkpoint_is_named_and_skipped(
    how: str, tmp_path: Path, straight: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(straight["sft"], out)
    newest = RunDir(out).checkpoint()
    tear(newest, how)
    assert RunDir(out).checkpoint().name == f"step-{STEPS - 1:06d}"
    fit(sft_run(STEPS), RunDir(out))
    said = capsys.readouterr().out
    assert newest.name in said and "incomplete checkpoint skipped" in said
    same(straight["sft"], out)


def test_two_whole_checkpoints_are_kept_and_a_torn_one_is_none_of_them(tmp_path: Path, half: Path) -> None:
    run = RunDir(half)
    shutil.copytree(half / "step-000004", half / "step-000002")
    shutil.copytree(half / "step-000004", half / "step-000003")
    tear(half / "step-000003", "short")
    with pytest.raises(KeyboardInterrupt):
        train_with(sft_run(STEPS), run, interrupted_at(5))
    assert run.steps() == [4, 5]


def test_what_a_kill_leaves_behind_is_cleared_away(half: Path, straight: dict[str, Path]) -> None:
    shutil.copytree(half / "step-000004", half / ".step-000005.123")
    fit(sft_run(STEPS), RunDir(half), quiet=True)
    assert not list(half.glob(".step-*"))
    same(straight["sft"], half)


def test_a_kill_while_the_first_file_was_written_is_no_other_run(tmp_path: Path, straight: dict[str, Path]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".run.yaml.123").write_bytes(b"recipe: s")
    fit(sft_run(STEPS), RunDir(out), quiet=True)
    same(straight["sft"], out)


@pytest.mark.parametrize(
    ("limit", "what"), [(50_000, "cannot write the checkpoint of step 5"), (1_000, "cannot write")]
)
def test_a_full_disk_loses_nothing(limit: int, what: str, tmp_path: Path, straight: dict[str, Path]) -> None:
    """1,000 bytes stop the record of the metrics, in the middle of its line; 50,000 the weights."""
    out = RunDir(tmp_path / "run")
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling(source: Source, model: Decoder, step: int) -> StepBatches:
        """From step 5 on, no file may grow beyond `limit` bytes."""
        if step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, soft[1]))
        return source.step(step)

    try:
        with pytest.raises(RorqualError, match=what):
            train_with(sft_run(STEPS), out, filling)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert out.newest_complete_step() == (4, []) and not list(out.path.glob(".*"))
    fit(sft_run(STEPS), out, quiet=True)
    same(straight["sft"], out.path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": STEPS + 1, "seed": 3}, "seed: 0 in the folder, 3 now; steps: 8 in the folder, 9 now"),
        ({"steps": STEPS - 1}, "steps=7 is smaller than the run's 8"),
        ({"seed": 3}, "seed: 0 in the folder, 3 now"),
        ({"micro_batches": 4}, "micro_batches: 2 in the folder, 4 now"),
        ({"source": sft_run().source.model_copy(update={"rows": 5})}, "source: rows: 4 in the folder, 5 now"),
    ],
)
def test_another_run_in_the_folder_is_refused_by_its_key(
    change: dict[str, object], said: str, tmp_path: Path, straight: dict[str, Path]
) -> None:
    before = snapshot(straight["sft"])
    with pytest.raises(ConfigError, match=said):
        fit(sft_run(STEPS).model_copy(update=change), RunDir(straight["sft"]), quiet=True)
    assert snapshot(straight["sft"]) == before


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_a_folder_of_something_else_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.txt").write_text("mine", "utf-8")
    for path, said in ((tmp_path, "holds no run"), (tmp_path / "photo.txt", "not a folder")):
        with pytest.raises(ConfigError, match=said):
            fit(sft_run(), RunDir(path), quiet=True)
    with pytest.raises(RorqualError, match="cannot write"):
        fit(sft_run(), RunDir(tmp_path / "photo.txt" / "run"), quiet=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["photo.txt"]


# ---- more steps in the same folder


LONGER = STEPS + 5


@pytest.fixture(scope="module")
def longer(straight: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both recipes, extended without an interruption once they had ended."""
    out = tmp_path_factory.mktemp("longer")
    for recipe, path in straight.items():
        shutil.copytree(path, out / recipe)
    return {recipe: out / recipe for recipe in straight}


def more(recipe: str, base: Path, steps: int) -> Run:
    return the_run(recipe, base).model_copy(update={"steps": steps})


@pytest.mark.parametrize("recipe", ["sft", "grpo"])
def test_more_steps_extend_a_run_and_a_kill_within_changes_no_bit(
    recipe: str,
    base: Path,
    straight: dict[str, Path],
    longer: dict[str, Path],
    tmp_path: Path,
    context: ForkServerContext,
) -> None:
    ended = the_run(recipe, base).steps
    run = more(recipe, base, ended + 5)
    fit(run, RunDir(longer[recipe]), quiet=True)
    old, new = records(straight[recipe]), records(longer[recipe])
    assert new[:ended] == old and len(new) == ended + 5
    told = {"from_step": ended, "old_steps": ended, "new_steps": ended + 5}
    assert [n for n, line in enumerate(new) if "old_steps" in line] == [ended] and told.items() <= new[ended].items()
    assert RunDir(longer[recipe]).config() == RunDir(straight[recipe]).config() | {
        "steps": ended + 5,
        "extensions": [told],
    }

    out, rng = tmp_path / "killed", random.Random(recipe)
    shutil.copytree(straight[recipe], out)
    died = [killed(context, run, out, rng) for _ in range(2)]
    assert any(died), "every run had ended before it was killed"
    child(run, out)
    same(longer[recipe], out)
    assert RunDir(out).config() == RunDir(longer[recipe]).config()


def test_the_schedule_is_of_the_new_total_from_the_checkpoint_on(
    half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that stands at step 4 of 8 takes its other steps as one of 13 that had its first four at the rates of 8."""
    run, factors = sft_run(LONGER), []

    class Seen(LearningRateSchedule):
        def factor_at(self, step: int, steps: int) -> float:
            factors.append((step, steps))
            return super().factor_at(step, steps)

    schedule = Seen(**run.optim.schedule.model_dump())
    fit(run.model_copy(update={"optim": run.optim.model_copy(update={"schedule": schedule})}), RunDir(half))
    assert factors == [(step, LONGER) for step in range(4, LONGER)]
    assert "extended after step 4: 13 steps instead of 8" in capsys.readouterr().out


def test_a_longer_run_that_kept_no_step_is_extended_once(half: Path) -> None:
    """Extended to 10 and killed before a checkpoint, then to 13: nothing of the first extension is left, in no file."""
    with pytest.raises(KeyboardInterrupt):
        fit(sft_run(10), RunDir(half), quiet=True, observe=interrupt)
    fit(sft_run(LONGER), RunDir(half), quiet=True)
    assert RunDir(half).config()["extensions"] == [{"from_step": 4, "old_steps": 8, "new_steps": LONGER}]
    lines = [line for line in records(half) if "old_steps" in line]
    assert [(line["step"], line["old_steps"], line["new_steps"]) for line in lines] == [(5, 8, LONGER)]
    fit(sft_run(LONGER + 1), RunDir(half), quiet=True)
    assert [e["from_step"] for e in RunDir(half).config()["extensions"]] == [4, LONGER]
    with pytest.raises(ConfigError, match=r"steps=13 is smaller than the run's 14(?s:.)*Set steps=14"):
        fit(sft_run(LONGER), RunDir(half), quiet=True)


def interrupt(record: dict[str, object]) -> None:
    raise KeyboardInterrupt


def test_an_experiment_is_never_extended(half: Path) -> None:
    """A finding is of the steps that it names."""
    with pytest.raises(ConfigError, match="steps: 8 in the folder, 13 now"):
        fit(sft_run(LONGER), RunDir(half), quiet=True, extend=False)


def test_a_tokenizer_trained_on_the_runs_text_is_kept_when_the_text_grows(tmp_path: Path) -> None:
    """An extension trains on the tokens that tokenizer.json has, with which the model is sampled and evaluated."""
    text, out = tmp_path / "text.txt", RunDir(tmp_path / "run")
    text.write_text("the cat sat on the mat " * 200, encoding="utf-8")
    run = pretrain(data=str(text), size="tiny", tokenizer="bpe:280", steps=1, rows=1, row=32)
    kept = fit(run, out, quiet=True).tokenizer
    text.write_text("zwei Ziegen zogen in den Zoo " * 800, encoding="utf-8")
    assert fit(run.model_copy(update={"steps": 2}), out, quiet=True).tokenizer == kept
    assert Tokenizer.load(out.tokenizer_file) == kept


@pytest.mark.parametrize(("make", "name"), [(grpo_run, "reference"), (on_policy_run, "teacher")])
def test_a_run_is_not_resumed_on_a_reference_or_teacher_that_was_trained_on(
    make: Callable[[Path], Run], name: str, base: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    run = make(base)
    run = run.model_copy(update={"source": run.source.model_copy(update={name: str(other)})})
    fit(run, tmp_path / "run", quiet=True, stop=lambda step: step == 1)
    again = read_yaml(Run, tmp_path / "run" / "run.yaml")
    weights = RunDir(other).checkpoint() / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\x80\x3f")
    for resumed, out in ((run, "run"), (again, "repeated")):
        with pytest.raises(ConfigError, match=f"source.{name}: the {name} of this run has changed"):
            fit(resumed, tmp_path / out, quiet=True)
    fit(run, tmp_path / "new", quiet=True)


def test_settings_that_cannot_be_used_write_no_folder(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="threads=0 is below 1"):
        fit(sft_run(), tmp_path / "run", threads=0)
    with pytest.raises(ConfigError, match="device 'tpu9' is not available"):
        fit(sft_run(device="tpu9"), tmp_path / "run")
    with pytest.raises(ConfigError, match="device 'cuda:99' is not available"):
        Engine(base, device="cuda:99")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_or_repeated_on_problems_of_another_version(tmp_path: Path) -> None:
    """Families record their versions in run.yaml; a run of before they had any drew version 1."""
    run, out = sft(task="families:add,kk", size="tiny", steps=2, rows=2, row=128), RunDir(tmp_path / "run")
    fit(run, out, quiet=True)
    assert out.config()["versions"] == {"add": 2, "kk": 2}
    fit(run, out, quiet=True)
    reinforced = grpo(
        task="families:add,mod", start=str(out.path), steps=1, problems=1, samples=2, max_tokens=4, row=128
    )
    fit(reinforced, RunDir(tmp_path / "reinforced"), quiet=True)
    assert RunDir(tmp_path / "reinforced").config()["versions"] == {"add": 2, "mod": 2}
    text = out.config_file.read_text(encoding="utf-8")
    old, none = text.replace("kk: 2", "kk: 1"), text[: text.index("versions:")]
    for changed, said in ((old, "kk of version 1, now 2"), (none, "add of version 1, now 2, kk of version 1, now 2")):
        assert changed != text
        out.config_file.write_text(changed, encoding="utf-8")
        for steps in (2, 4):
            with pytest.raises(ConfigError, match=f"run.yaml: .*no longer generates: {said}"):
                fit(run.model_copy(update={"steps": steps}), out, quiet=True)
    again = read_yaml(Run, out.config_file).model_copy(update={"versions": {"add": 2, "kk": 1}})
    with pytest.raises(ConfigError, match=r"versions: .*kk of version 1, now 2(?s:.)*Remove versions"):
        fit(again, RunDir(tmp_path / "again"), quiet=True)
    assert not (tmp_path / "again" / "run.yaml").exists()
