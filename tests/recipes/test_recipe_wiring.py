"""What recipes pass on: a paper's numbers, the start's own chat and tokenizer, a model's depth; and when a report is drawn again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rorqual.core.config import override_fields
from rorqual.core.records import RunDir
from rorqual.data.tokenizer import Tokenizer
from rorqual.recipes import make_run
from rorqual.recipes.quickstart import QuickstartPaths
from rorqual.recipes.quickstart.report import REPORT_FILE
from rorqual.recipes.quickstart.summary import PAID_FOR, is_report_current
from rorqual.recipes.start import start_settings
from rorqual.train.loop import fit
from rorqual.train.run import FLOAT32, Run

LITTLE = {"task": "families:add", "size": "tiny", "rows": "2", "row": "96", "steps": "1"}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another chat format than the default, and of 18 layers."""
    out = tmp_path_factory.mktemp("wired") / "run"
    run = make_run("sft", LITTLE)
    deep = override_fields(run, ["model.stages.1.layers=17", "chat=deepseek-r1"])
    fit(deep, RunDir(out), quiet=True)
    return out


# ---- a paper's settings


VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    "dapo": {"source.max_num_gen_batches": 4, "source.overlong_buffer": 4, "source.overlong_penalty": 0.5},
    "dr_grpo": {"objectives.per": "constant", "objectives.max_tokens": 20, "objectives.clip_high": 0.2, "source.std": False},
    "gspo": {"objectives.importance_sampling_level": "sequence", "objectives.per": "sequence", "objectives.clip_low": 3e-4,
             "objectives.clip_high": 4e-4},
    "cispo": {"objectives.loss_type": "cispo", "objectives.clip_low": 1.0, "objectives.clip_high": 4.0},
    "v32": {"objectives.per": "sequence", "objectives.clip_high": 0.2, "objectives.beta": 1e-3, "objectives.kl": "unbiased",
            "objectives.off_policy_delta": 0.5, "source.std": False, "source.top_p": 0.95, "source.reference": "START"},
}  # fmt: skip


def settings(run: Run) -> dict[str, Any]:
    (objective,) = run.objectives
    return {f"objectives.{k}": v for k, v in objective.model_dump().items()} | {
        f"source.{k}": v for k, v in run.source.model_dump().items()
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_papers_settings_are_its_numbers_and_nothing_else_changes(variant: str, start: Path) -> None:
    """As docs/how-to/grpo.md lists them."""
    given = {"task": "families:add", "from": str(start), "max_tokens": "20"}
    plain, found = settings(make_run("grpo", given)), settings(make_run("grpo", given | {"variant": variant}))
    wanted = {name: str(start) if value == "START" else value for name, value in VARIANTS[variant].items()}
    assert {name: value for name, value in found.items() if plain[name] != value} == wanted


def test_a_short_answer_has_a_buffer_too_and_a_weight_of_nothing_needs_no_reference(start: Path) -> None:
    given = {"task": "families:add", "from": str(start), "max_tokens": "3"}
    assert settings(make_run("grpo", given | {"variant": "dapo"}))["source.overlong_buffer"] == 1
    v32 = given | {"variant": "v32"}
    for more, beta, reference in (({"beta": "0"}, 0.0, ""), ({"beta": "0.5"}, 0.5, str(start)),
                                  ({"reference": "other"}, 1e-3, "other"), ({"beta": "0", "reference": "other"}, 0.0, "other")):  # fmt: skip
        found = settings(make_run("grpo", v32 | more))
        assert (found["objectives.beta"], found["source.reference"]) == (beta, reference)


# ---- the start


@pytest.mark.parametrize("recipe", ["pretrain", "sft", "dpo", "grpo", "distil", "on_policy"])
def test_a_run_speaks_as_the_run_that_it_starts_from(recipe: str, start: Path) -> None:
    """Its chat format and its model are kept, whatever size or tokenizer is the recipe's own."""
    given: dict[str, dict[str, str]] = {"pretrain": {"data": "t"}, "sft": {"task": "families:add"}, "grpo": {"task": "families:add"},
                                        "dpo": {"data": "d"}, "distil": {"data": "d"},
                                        "on_policy": {"task": "families:add", "teacher": "t"}}  # fmt: skip
    run = make_run(recipe, given[recipe] | {"from": str(start)})
    assert run.chat == "deepseek-r1" and len(run.model.layers) == 18 and run.start.tokenizer == "bytes"
    if recipe in ("grpo", "on_policy"):
        assert run.agreement.mean == pytest.approx(18 / 8 * FLOAT32.mean), "a deep model rounds more"
        assert run.agreement.gap == pytest.approx(18 / 8 * FLOAT32.gap)


def test_a_fresh_run_speaks_what_its_tokenizer_has_marks_for(tmp_path: Path) -> None:
    ours = Tokenizer.byte_level(["aaaa bbbb"] * 9, vocab_size=266)
    ours.save(tmp_path / "ours.json")
    source = ours.source.replace("<｜User｜>", "<|im_start|>").replace("<｜Assistant｜>", "<|im_end|>")
    Tokenizer(source).save(tmp_path / "chatml.json")
    for file, chat in (("ours", "deepseek"), ("chatml", "chatml-plain")):
        path = str(tmp_path / f"{file}.json")
        begin, model, found = start_settings("", path, "tiny", 40)
        assert (begin.tokenizer, model.vocab_size, model.max_position_embeddings, found) == (path, 266, 40, chat)
        assert make_run("sft", LITTLE | {"tokenizer": path}).chat == chat
    assert start_settings("", "bpe:270", "tiny", 40)[1].vocab_size == 270


# ---- the quickstart's summary


def test_a_report_is_drawn_again_where_a_file_that_it_shows_is_newer(tmp_path: Path) -> None:
    place, then = QuickstartPaths(tmp_path), 10**18
    place.evals.mkdir()
    files = [
        *(place.run(name).metrics_file for name in ("base", "reinforced")),
        place.evaluation("before-on"),
        place.summary,
    ]
    for file in (*files, tmp_path / REPORT_FILE):
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}", encoding="utf-8")
        os.utime(file, ns=(then, then))
    assert is_report_current(place)
    for file in files[:-1]:
        os.utime(file, ns=(then + 1, then + 1))
        assert not is_report_current(place), file.name
        os.utime(file, ns=(then, then))
    (tmp_path / REPORT_FILE).unlink()
    assert not is_report_current(place)


def test_who_learns_from_the_teacher_pays_for_its_samples() -> None:
    """So the costs of distillation and of reinforcement can be compared."""
    paying = {name for name, stages in PAID_FOR.items() if "sample the teacher" in stages}
    assert paying == {"distilled", "answers-only"}
    trained = [stage for stages in PAID_FOR.values() for stage in stages if stage != "sample the teacher"]
    assert len(trained) == len({*trained}) == 6, "all other stages are paid for once"
