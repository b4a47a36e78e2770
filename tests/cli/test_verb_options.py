"""Every option that a verb declares reaches the place where it acts. Of `train`, `distil`, `serve`, `quickstart` and `lab`: elsewhere."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from stub_server import StubServer, running, spoken
from typer.testing import CliRunner

from in_process import output_of
from rorqual.cli.benching import BenchSettings
from rorqual.cli.conversation import ChatSettings
from rorqual.cli.eval_settings import EvalSettings
from rorqual.cli.generating import GenerateSettings
from rorqual.cli.main import OPTIONS, app
from rorqual.cli.planning import ServePlanSettings, TrainPlanSettings
from rorqual.core.config import Config, read_yaml
from rorqual.core.records import Message, RunDir
from rorqual.engine.engine import Engine
from rorqual.engine.request import Request, SamplingParams
from rorqual.engine.seeds import sample_seed
from rorqual.evals.compare import compare_pair
from rorqual.evals.evaluating import pick_problems, with_problem_seed
from rorqual.evals.evaluation import Evaluation
from rorqual.evals.results import compare
from rorqual.evals.table import comparison_table, unmarked_replies_note
from rorqual.generate.schema import RowSampling
from rorqual.recipes import make_run
from rorqual.tasks.find import load_task
from rorqual.train.loop import fit
from rorqual.train.run import Run


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the commands are typed in; it holds a copy of the tiny run."""
    monkeypatch.chdir(place)
    return place


def refuses_devices(*words: str) -> None:
    assert "device 'gpu9' is not available" in output_of(*words, "device=gpu9", code=2)


# ---- eval


EVAL = {
    "task": "families:add",
    "count": "4",
    "max_tokens": "6",
    "thinking": "off",
    "threads": "1",
    "out": "e.json",
}
EVALUATED: dict[str, tuple[dict[str, str], str]] = {
    # option: what it needs beside it, and another value
    "task": ({}, "families:sub"),
    "split": ({}, "dev"),
    "count": ({}, "2"),
    "seed": ({}, "1"),
    "thinking": ({}, "on"),
    "temperature": ({}, "1.5"),
    "samples": ({"temperature": "1.5"}, "2"),
    "votes": ({"temperature": "1.5"}, "2"),
    "best_of": ({"temperature": "1.5"}, "2"),
    "stop_when": ({"task": "families:swap", "temperature": "0.01", "votes": "5"}, "settled"),
    "refine": ({}, "1"),
    "system": ({}, "Be brief."),
    "think_budget": ({"thinking": "on"}, "2"),
    "max_tokens": ({}, "3"),
    "per_family": ({"task": "families:add,sub"}, "true"),
    "options": ({}, "{hard: 1.0}"),
    "dtype": ({"max_tokens": "60"}, "bfloat16"),
}
"""Those that another evaluation shows; the others are tested one by one below."""
EVAL_ALONE = {"data", "window", "out", "threads", "device", "model", "seed_bits", "concurrency", "backend"}
EVAL_ALONE |= {"calculator", "verifier", "verifier_data", "sure", "page"}


def evaluated(words: dict[str, str], model: str = "run") -> dict[str, Any]:
    """What an evaluation's file holds, but for the time that it took."""
    output_of("eval", model, *(f"{k}={v}" for k, v in words.items()))
    return json.loads(Path(words["out"]).read_text(encoding="utf-8")) | {"seconds": 0}


@pytest.mark.parametrize("name", EVALUATED)
@pytest.mark.usefixtures("here")
def test_an_option_of_eval_changes_the_evaluation(name: str, engines: list[dict[str, Any]]) -> None:
    beside, value = EVALUATED[name]
    one = evaluated(EVAL | beside)
    two = evaluated(EVAL | beside | {name: value})
    if name == "dtype":  # rounding may leave a greedy text as it was
        assert [made["dtype"] for made in engines] == ["float32", "bfloat16"]
    else:
        assert one["samples"] != two["samples"]


@pytest.mark.usefixtures("here")
def test_eval_asks_and_records_what_it_was_told() -> None:
    told = {
        "task": "families:add,sub",
        "split": "dev",
        "count": "3",
        "seed": "7",
        "thinking": "on",
        "temperature": "0.5",
        "samples": "2",
        "votes": "2",
        "think_budget": "3",
        "calculator": "true",
        "system": "Be brief.",
        "max_tokens": "5",
        "per_family": "true",
        "options": "{hard: 0.5}",
        "out": "elsewhere.json",
    }
    found = Evaluation.model_validate(evaluated(told))
    params = SamplingParams(max_tokens=5, temperature=0.5, seed=7, n=2, think_budget=3, calculator=True)
    assert (found.split, found.count, found.seed, found.thinking) == ("dev", 3, 7, "on")
    assert (found.per_family, found.params, found.model) == (True, params, "run")
    problems = pick_problems(load_task("families:add,sub", options={"hard": 0.5}), "dev", 3, 7, True)
    assert found.problem_keys == [problem.key for problem in problems]
    system = Message("system", "Be brief.")
    requests = [
        Request((system, *problem.messages), with_problem_seed(params, problem.key), "on") for problem in problems
    ]
    answers = [c for group in Engine("run", record_experts=False).generate(requests) for c in group]
    assert [(s.reply, s.reasoning, s.tokens) for s in found.samples] == [
        (c.text, c.reasoning, len(c.token_ids)) for c in answers
    ]
    assert [s.logprob for s in found.samples] == [sum(c.logprobs) / len(c.logprobs) for c in answers]
    assert all(s.thinking_tokens <= 3 for s in found.samples)
    words = [f"{key}={value}" for key, value in told.items()]
    assert "majority, until settled" in output_of("eval", "run", *words)
    assert "until settled" not in output_of("eval", "run", *(word for word in words if not word.startswith("votes")))


@pytest.mark.usefixtures("here")
def test_eval_keeps_canonical_answers_if_votes_are_counted() -> None:
    """The answer of a swap is its whole text, so each reply has one."""
    given = EVAL | {"task": "families:swap", "temperature": "1.5"}
    voted = evaluated(given | {"votes": "2"})["samples"]
    assert any(one["answered"] for one in voted)
    assert [one["answered"] for one in voted] == [one["reply"].strip() or None for one in voted]
    assert {one["answered"] for one in evaluated(given | {"samples": "2"})["samples"]} == {None}


def test_a_text_is_read_in_windows_with_as_many_threads_as_told(here: Path) -> None:
    for name, text in (("one.txt", "one two three " * 60), ("two.txt", "seven eight " * 60)):
        (here / name).write_text(text, encoding="utf-8")
    words = ("eval", "run", "data=one.txt", "window=16", "out=t.json")
    one = output_of(*words, "threads=1")
    assert torch.get_num_threads() == 1 and "from at most 16 tokens" in one
    assert one == output_of(*words, "threads=2") and torch.get_num_threads() == 2
    others = {
        output_of("eval", "run", "data=two.txt", "window=16", "out=t.json"),
        output_of("eval", "run", "data=one.txt", "window=20", "out=t.json"),
    }
    others.add(output_of(*words, "dtype=bfloat16"))
    assert len({one, *others}) == 4
    refuses_devices(*words)


def test_eval_keeps_its_answers_by_task_split_and_mode(here: Path) -> None:
    output_of("eval", "run", "task=families:add", "count=1", "max_tokens=2", "split=dev", "thinking=on")
    assert [path.name for path in (here / "run" / "evals").iterdir()] == ["families-add-dev-on.json"]


@pytest.mark.usefixtures("here")
def test_eval_makes_its_engine_as_told(engines: list[dict[str, Any]]) -> None:
    words = ("eval", "run", "task=families:add", "count=1", "max_tokens=2", "out=e.json")
    output_of(*words, "threads=2", "dtype=bfloat16", "backend=torch")
    assert engines == [
        {"run": "run", "device": "cpu", "dtype": "bfloat16", "threads": 2, "record_experts": False, "backend": "torch"},
    ]
    refuses_devices(*words)


@pytest.fixture
def server() -> Iterator[StubServer]:
    with running(StubServer(lambda *_: (200, spoken("3")))) as made:
        yield made


REMOTE: dict[str, tuple[str, ...]] = {
    "eval": ("task=families:add", "count=4", "seed=7", "max_tokens=9", "temperature=0.5", "out=e.json"),
    "generate": ("out=o.jsonl", "seed=7", "max_tokens=9", "temperature=0.5", "quiet=true"),
}


def ask_server(verb: str, address: str, *words: str) -> None:
    given = (address,) if verb == "eval" else ("p.jsonl", f"run={address}")
    output_of(verb, *given, "model=mine", *REMOTE[verb], *words)


@pytest.mark.parametrize("verb", REMOTE)
@pytest.mark.parametrize("bits", [31, 64])
def test_a_server_is_asked_for_its_model_with_seeds_of_as_many_bits(
    verb: str, bits: Any, here: Path, server: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RORQUAL_API_KEY", "a key")
    (here / "p.jsonl").write_text("".join(f'{{"prompt": "p{n}", "seed": {n}}}\n' for n in range(4)), encoding="utf-8")
    ask_server(verb, server.url, f"seed_bits={bits}", "concurrency=1")
    assert len(server.bodies) == 4 and server.most == 1
    assert {(b["model"], b["temperature"], b["max_tokens"]) for b in server.bodies} == {("mine", 0.5, 9)}
    assert set(server.keys) == {"Bearer a key"}
    seeds = list(range(4))
    if verb == "eval":
        params = SamplingParams(seed=7)
        seeds = [
            with_problem_seed(params, p.key).seed for p in pick_problems(load_task("families:add"), "test", 4, 7, False)
        ]
    assert [b["seed"] for b in server.bodies] == [sample_seed(seed, 0, bits) for seed in seeds]


@pytest.mark.parametrize("verb", REMOTE)
def test_a_server_is_asked_as_much_at_once_as_told(verb: str, here: Path, server: StubServer) -> None:
    """The server answers nothing until four requests are there."""
    gate = threading.Barrier(4)

    def reply(number: int, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        gate.wait(120)
        return 200, spoken("3")

    server.reply = reply
    (here / "p.jsonl").write_text("".join(f'{{"prompt": "p{n}"}}\n' for n in range(4)), encoding="utf-8")
    ask_server(verb, server.url, "concurrency=4")
    assert server.most == 4 and not gate.broken


# ---- compare


def test_compare_pairs_by_the_grain_that_it_is_told(here: Path) -> None:
    for name in ("a", "b"):
        evaluated(
            EVAL | {"task": "families:add,sub", "count": "8", "seed": "3", "out": f"{name}.json", "max_tokens": "3"}
        )
    told = {grain: output_of("compare", "a.json", "b.json", f"grain={grain}") for grain in ("family", "level", "all")}
    assert len(set(told.values())) == 3 and told["family"] == output_of("compare", "a.json", "b.json")
    one, two = (Evaluation.load(here / f"{name}.json") for name in ("a", "b"))
    for grain, text in told.items():
        rows = compare_pair(one, two, grain=grain, confidence=0.99)  # type: ignore[arg-type]
        note = unmarked_replies_note({"a.json": one, "b.json": two})
        assert note and text == comparison_table(rows, title="b.json - a.json, paired").text() + f"\n{note}\n"
    wide = output_of("compare", "a.json", "b.json", "confidence=0.5")
    assert "50 % interval" in wide and "99 % interval" in told["family"]
    files = {"out": "r.json", "latex": "r.tex", "plot": "r.svg", "page": "r.html"}
    evaluated(EVAL | {"task": "families:add,sub", "count": "8", "seed": "3", "out": "c.json", "max_tokens": "2"})
    arms = ("a.json,c.json", "c.json,a.json", "b.json,c.json", "names=x,y,z")
    pairs = output_of("compare", *arms, *(f"{key}={file}" for key, file in files.items()))
    assert "y - x, paired over 2 seeds" in pairs and "z - x, paired over 2 seeds" in pairs
    found = compare(*(["a.json", "c.json"], ["c.json", "a.json"], ["b.json", "c.json"]), names=("x", "y", "z"))
    for write, file in zip((found.to_json, found.to_latex, found.plot, found.page), files.values(), strict=True):
        again = here / f"again{Path(file).suffix}"
        write(again)
        assert again.read_bytes() == (here / file).read_bytes() and f"  {file}\n" in pairs
    assert "out is a folder" in output_of("compare", "a.json", "b.json", "page=.", code=2)


# ---- generate


GENERATED: dict[str, tuple[str, Any]] = {
    # key: as it is typed, and what it is
    "max_tokens": ("7", 7),
    "temperature": ("0.5", 0.5),
    "top_p": ("0.6", 0.6),
    "top_k": ("3", 3),
    "min_p": ("0.2", 0.2),
    "seed": ("9", 9),
    "n": ("2", 2),
    "ignore_eos": ("true", True),
    "repetition_penalty": ("1.5", 1.5),
    "presence_penalty": ("0.25", 0.25),
    "frequency_penalty": ("0.75", 0.75),
    "logit_bias": ("{70: 2.5}", {70: 2.5}),
    "stop": ("12", "12"),
    "stop_token_ids": ("[4, 9]", [4, 9]),
    "top_logprobs": ("3", 3),
    "prompt_logprobs": ("2", 2),
    "think_budget": ("3", 3),
    "calculator": ("true", True),
    "min_tokens": ("1", 1),
    "min_p_first": ("true", True),
    "grammar": ("{kind: regex, source: '[0-9]+'}", {"kind": "regex", "source": "[0-9]+"}),
    "thinking": ("off", "off"),
}
GENERATE_ALONE = {
    "run",
    "out",
    "prompt",
    "raw",
    "token_ids",
    "logprobs",
    "strict",
    "quiet",
    "slots",
    "max_len",
    "threads",
}
GENERATE_ALONE |= {"device", "dtype", "model", "concurrency", "seed_bits", "backend"}
GENERATE = ("generate", "p.jsonl", "run=run", "quiet=true", "threads=1")


def generated(here: Path, rows: list[dict[str, Any]], *words: str, code: int = 0) -> list[dict[str, Any]]:
    (here / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (here / "o.jsonl").unlink(missing_ok=True)
    output_of(*GENERATE, "out=o.jsonl", *words, code=code)
    return [json.loads(line) for line in (here / "o.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_keys_of_the_command_are_those_of_each_row(here: Path) -> None:
    """All at once, typed, against all at once in the row."""
    typed = [f"{name}={text}" for name, (text, _) in GENERATED.items() if name not in ("seed", "grammar")]
    values = {name: value for name, (_, value) in GENERATED.items() if name not in ("seed", "grammar")}
    values["logit_bias"] = {"70": 2.5}
    row = {"prompt": "add 1 2", "seed": 3}
    assert generated(here, [row], *typed) == generated(here, [row | values]) != generated(here, [row])
    by_grammar = generated(here, [row], "max_tokens=8", f"grammar={GENERATED['grammar'][0]}", "thinking=off")
    assert by_grammar[0]["choices"][0]["text"].isdigit()
    lines = [{"prompt": "add 1 2", "temperature": 1.0, "max_tokens": 9}] * 2
    one, two = generated(here, lines), generated(here, lines, "seed=9")
    assert len({row["seed"] for row in one + two}) == 4


def test_what_generate_writes_and_reads_is_as_told(here: Path) -> None:
    row = {"prompt": "add 1 2", "max_tokens": 4, "seed": 3}
    plain = generated(here, [row])[0]
    assert {"token_ids", "logprobs"}.isdisjoint(plain["choices"][0])
    ids = generated(here, [row], "token_ids=true")[0]["choices"][0]
    logprobs = generated(here, [row], "logprobs=true")[0]["choices"][0]
    assert "token_ids" in ids and "logprobs" not in ids and "logprobs" in logprobs and "token_ids" not in logprobs
    assert generated(here, [row], "raw=true")[0]["usage"]["prompt_tokens"] != plain["usage"]["prompt_tokens"]
    assert len(generated(here, [row, {"prompt": ""}], code=1)) == 2
    (here / "o.jsonl").unlink()
    assert "p.jsonl:2" in output_of(*GENERATE, "out=o.jsonl", "strict=true", code=2)
    assert not (here / "o.jsonl").exists()
    long = generated(here, [row | {"max_tokens": 300, "ignore_eos": True}], "max_len=30")[0]
    assert long["usage"]["prompt_tokens"] + long["usage"]["completion_tokens"] == 30
    shutil.copytree(here / "run", here / "other")
    output_of("generate", "p.jsonl", "run=other", "out=far.jsonl", "max_tokens=3", "threads=1")
    assert (here / "far.jsonl").is_file()


def test_generate_is_quiet_where_it_is_told_to_be(here: Path) -> None:
    (here / "p.jsonl").write_text('{"prompt": "a", "max_tokens": 2}\n', encoding="utf-8")
    for number, quiet in enumerate(("true", "false")):
        done = CliRunner().invoke(
            app, ["generate", "p.jsonl", "run=run", f"out={number}.jsonl", "threads=1", f"quiet={quiet}"]
        )
        assert done.exit_code == 0 and ("generate  1/1" in done.stderr) == (quiet == "false")


def test_generate_makes_its_engine_as_told(here: Path, engines: list[dict[str, Any]]) -> None:
    generated(here, [{"prompt": "a", "max_tokens": 2}] * 3, "slots=2", "max_len=60", "dtype=bfloat16", "backend=torch")
    expected = {
        "slots": 2,
        "max_len": 60,
        "threads": 1,
        "device": "cpu",
        "dtype": "bfloat16",
        "record_experts": False,
    } | {"backend": "torch"}
    assert engines == [{"run": "run"} | expected] and torch.get_num_threads() == 1
    output_of("generate", "p.jsonl", "run=run", "out=other.jsonl", "threads=2", "quiet=true")
    assert torch.get_num_threads() == engines[-1]["threads"] == 2
    refuses_devices(*GENERATE, "out=another.jsonl")


# ---- chat


CHATTED = {
    "thinking": ({}, "on"),
    "system": ({}, "Speak of whales."),
    "temperature": ({}, "1.5"),
    "max_tokens": ({}, "3"),
    "think_budget": ({"thinking": "on"}, "2"),
    "seed": ({"temperature": "1.5"}, "1"),
}
CHAT_ALONE = {"threads", "device", "dtype", "backend"}


def chatted(words: dict[str, str], between: str = "") -> str:
    messages = f"add 1 2\n/new\nadd 3 4\n{between}add 5 6\n"
    return output_of("chat", "run", *(f"{k}={v}" for k, v in words.items()), stdin=messages)


@pytest.mark.parametrize("name", CHATTED)
@pytest.mark.usefixtures("here")
def test_an_option_of_chat_changes_the_replies(name: str) -> None:
    beside, value = CHATTED[name]
    given = {"thinking": "off", "max_tokens": "12"} | beside
    one = chatted(given)
    assert one == chatted(given) != chatted(given | {name: value})


def test_chat_has_the_defaults_of_the_run_and_a_given_key_replaces_one(here: Path) -> None:
    """Each file gives the same replies as the keys that say the same, to messages that are answered alone."""
    file, told = here / "run" / "defaults.json", {"thinking": "on", "max_tokens": "5"}
    others = (("thinking", "off"), ("max_tokens", "7"))
    plain = {name: chatted(told | {name: value}, "/new\n") for name, value in others}
    with_all = chatted(told, "/new\n")
    file.write_text('{"thinking": "on", "max_tokens": 5}', encoding="utf-8")
    assert chatted({}) == with_all and len({with_all, *plain.values()}) == 3
    assert chatted({"thinking": "off"}) == plain["thinking"] and chatted({"max_tokens": "7"}) == plain["max_tokens"]
    grammar = {"kind": "choice", "source": '["card", "pin"]'}
    file.write_text(json.dumps({"thinking": "off", "grammar": grammar}), encoding="utf-8")
    found = [line for line in chatted({"temperature": "1.5"}).splitlines() if line and "this " not in line]
    assert len(found) == 3 and {*found} <= {"card", "pin"}, "whole replies, which are not noted as cut off"
    file.write_text('{"max_tokens": 0}', encoding="utf-8")
    assert "defaults.json: key 'max_tokens'" in output_of("chat", "run", code=2)


@pytest.mark.usefixtures("here")
def test_chat_makes_its_engine_as_told(engines: list[dict[str, Any]]) -> None:
    chatted({"max_tokens": "3", "threads": "2", "dtype": "bfloat16", "backend": "torch"})
    expected = {"run": "run", "device": "cpu", "dtype": "bfloat16", "slots": 1, "threads": 2, "backend": "torch"}
    assert engines == [expected]
    assert torch.get_num_threads() == 2, "a reply is drawn by the calling thread, and torch's operations share it out"
    refuses_devices("chat", "run")


# ---- weights of 8 bits


def test_int8_needs_the_native_kernels(here: Path) -> None:
    """Each command chooses them, unless the user names another backend."""
    (here / "p.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    commands = {
        "eval": ("run", "task=families:add", "count=1", "max_tokens=2", "out=e.json"),
        "bench": ("run", "batch=1", "prompt=4", "new=2", "repeats=1"),
        "generate": ("p.jsonl", "run=run", "out=o.jsonl", "max_tokens=2", "quiet=true"),
    }
    for verb, words in commands.items():
        refused = output_of(verb, *words, "dtype=int8", "backend=torch", code=2)
        assert "dtype=int8 needs backend=native" in refused and "Add backend=native" in refused
        output_of(verb, *words, "dtype=int8")
    output_of("chat", "run", "max_tokens=2", "dtype=int8")
    assert "dtype" in output_of("attention", "run", "data=p.jsonl", "dtype=int8", code=2), "a command without an engine"


# ---- bench


def test_bench_measures_what_it_is_told(
    here: Path, engines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests themselves: so many at once, of so many tokens, so often, by the seed."""
    asked: list[Request] = []
    submit = Engine.submit

    def noted(self: Engine, request: Request) -> int:
        asked.append(request)
        return submit(self, request)

    monkeypatch.setattr(Engine, "submit", noted)

    def requests(*words: str) -> list[Request]:
        asked.clear()
        output_of("bench", "run", "batch=1,2", "prompt=4,9", "new=5", "repeats=2", "threads=1", "out=b.json", *words)
        return list(asked)

    one = requests()
    sizes = [len(request.prompt_ids or ()) for request in one]
    assert sizes == [4] * 3 + [9] * 3 + [4] * 6 + [9] * 6, "a warm-up and two repeats of each pair"
    assert {r.params for r in one} == {SamplingParams(max_tokens=5, ignore_eos=True)}
    found = json.loads((here / "b.json").read_text(encoding="utf-8"))
    given = {"batch": [1, 2], "prompt": [4, 9], "new": 5, "repeats": 2, "seed": 0, "threads": 1}
    own = {"out": "b.json", "device": "cpu", "dtype": "float32", "backend": "auto"}
    assert found["settings"] == given | own and found["threads"] == 1
    assert found["settings"].keys() == BenchSettings.model_fields.keys()
    engine = {"run": Path("run"), "device": "cpu", "slots": 2, "threads": 1, "record_experts": False}
    assert engines == [engine | {"run": "run", "dtype": "float32", "backend": "auto"}]
    other = requests("seed=1", "dtype=int8", "backend=native")
    assert [r.prompt_ids for r in one] != [r.prompt_ids for r in other]
    assert (engines[-1]["dtype"], engines[-1]["backend"]) == ("int8", "native")
    refuses_devices("bench", "run")


# ---- inspect and doctor


def test_doctor_measures_the_device_in_the_type_that_it_is_told() -> None:
    assert "on cpu in bfloat16" in output_of("doctor", "dtype=bfloat16") and "on cpu in float32" in output_of("doctor")
    refuses_devices("doctor")


# ---- conversions


def types(folder: Path) -> set[str]:
    """The types of the weights in a folder's files."""
    found = set()
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= {str(tensors.get_tensor(name).dtype) for name in tensors.keys()}  # noqa: SIM118
    return found


def test_export_writes_the_format_the_type_and_the_files_that_it_is_told(here: Path) -> None:
    assert "hf" in output_of("export", "run", "hf")
    kept = types(here / "hf")
    for dtype in ("float16", "bfloat16"):
        assert output_of("export", "run", f"hf-{dtype}", f"dtype={dtype}", "quiet=true") == ""
        assert f"torch.{dtype}" in types(here / f"hf-{dtype}") != kept
    output_of("export", "run", "many", "shard_gb=0.00005")
    assert len(list((here / "hf").glob("*.safetensors"))) == 1 < len(list((here / "many").glob("*.safetensors")))
    output_of("export", "run", "whole.gguf", "format=gguf")
    output_of("export", "run", "half.gguf", "format=gguf", "dtype=bfloat16")
    output_of("export", "run", "half16.gguf", "format=gguf", "dtype=float16")
    whole, *halves = ((here / f"{name}.gguf").read_bytes() for name in ("whole", "half", "half16"))
    assert all(half[:4] == b"GGUF" and len(half) < len(whole) for half in halves) and halves[0] != halves[1]


def test_import_takes_the_type_that_it_is_told(here: Path) -> None:
    output_of("export", "run", "hf", "quiet=true")
    output_of("export", "run", "small.gguf", "format=gguf", "dtype=q8_0", "quiet=true")
    for source, first in (("hf", "kept"), ("small.gguf", "read")):
        assert f"rorqual chat {first}" in output_of("import", source, first)
        assert output_of("import", source, f"{first}-bf16", "dtype=bfloat16", "quiet=true") == ""
        assert "torch.bfloat16" in types(here / f"{first}-bf16") - types(here / first)


@pytest.fixture(scope="module")
def lora(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the tiny run."""
    out = tmp_path_factory.mktemp("lora") / "lora"
    made = make_run("sft", {"task": "families", "from": str(tiny), "steps": "2", "rows": "4"})
    tune = {"kind": "lora", "r": 2, "targets": ["q_b_proj"]}
    fit(Run.model_validate(made.model_dump() | {"tune": tune}), RunDir(out), quiet=True)
    return out


def test_merge_writes_the_type_that_it_is_told(here: Path, lora: Path) -> None:
    assert "rorqual export whole" in output_of("merge", str(lora), "whole")
    assert output_of("merge", str(lora), "half", "dtype=bfloat16", "quiet=true") == ""
    assert "torch.bfloat16" in types(here / "half") - types(here / "whole")


def test_merge_copies_the_defaults_of_the_task_and_training_from_the_run_does_not(here: Path, lora: Path) -> None:
    shutil.copytree(lora, here / "taught")
    defaults = b'{"thinking": "off", "max_tokens": 32}'
    (here / "taught" / "defaults.json").write_bytes(defaults)
    output_of("merge", "taught", "whole")
    assert (here / "whole" / "defaults.json").read_bytes() == defaults
    output_of("merge", str(lora), "plain")
    assert not (here / "plain" / "defaults.json").exists()
    output_of("train", "sft", "task=families", "from=whole", "steps=1", "rows=2", "out=trained")
    assert not (here / "trained" / "defaults.json").exists() and (here / "trained" / "run.yaml").is_file()


def test_peft_writes_the_name_and_reads_for_the_base_that_it_is_told(here: Path, lora: Path, tiny: Path) -> None:
    assert output_of("peft", str(lora), "plain") == "plain\n"
    assert output_of("peft", str(lora), "named", "name=some/model", "quiet=true") == ""
    names = [
        json.loads((here / folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        for folder in ("plain", "named")
    ]
    assert names == [str(tiny), "some/model"]
    assert "rorqual chat back" in output_of("peft", "named", "back", "base=run")
    assert "run" in (here / "back" / "run.yaml").read_text(encoding="utf-8")
    assert "nowhere" in output_of("peft", "named", "again", "base=nowhere", code=2)


# ---- sparsify


def test_sparsify_gives_each_option_to_its_stage(here: Path) -> None:
    lines = [
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "a" * n}]}
        for n in range(9, 30)
    ]
    (here / "d.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    words = (
        "index_topk=7", "index_n_heads=3", "index_head_dim=20", "index_dtype=float8_e4m3fn", "warmup=2", "warmup_lr=0.02",
        "steps=3", "lr=0.003", "seed=4", "data=d.jsonl", "rows=5", "row=48", "dtype=bfloat16", "device=cpu", "threads=1",
    )  # fmt: skip
    assert "rorqual chat out" in output_of("sparsify", "run", "out", *words)
    warm, sparse = (read_yaml(Run, here / "out" / name / "run.yaml") for name in ("warmup", "sparse"))
    assert (warm.steps, warm.optim.lr, sparse.steps, sparse.optim.lr) == (2, 0.02, 3, 0.003)  # type: ignore[attr-defined]
    for run in (warm, sparse):
        source = run.source.model_dump(include={"kind", "data", "rows", "row"})
        assert source == {"kind": "conversations", "data": "d.jsonl", "rows": 5, "row": 48}
        assert (run.seed, run.dtype, run.device) == (4, "bfloat16", "cpu")
        attention = run.model.stages[0].attention
        index = attention.model_dump(include={"index_topk", "index_n_heads", "index_head_dim", "index_dtype"})
        assert index == {
            "index_topk": 7, "index_n_heads": 3, "index_head_dim": 20, "index_dtype": "float8_e4m3fn",
        }  # fmt: skip
    task = ("index_topk=7", "warmup=1", "steps=1", "rows=2", "task=families", "options={hard: 0.5}", "quiet=true")
    assert output_of("sparsify", "run", "other", *task) == ""
    source = read_yaml(Run, here / "other" / "sparse" / "run.yaml").source.model_dump()
    assert (source["task"], source["options"], source["rows"]) == ("families", {"hard": 0.5}, 2)
    assert "device 'gpu9' is not available" in output_of(
        "sparsify", "run", "third", "index_topk=7", "device=gpu9", code=2
    )
    assert "key 'index_topk': Field required" in output_of("sparsify", "run", "third", code=2)


# ---- plan


V3 = ("plan", "deepseek-v3", "--train", "tokens=14.8T", "n=2048")
DENSE = ("plan", "qwen3-8b", "--train", "tokens=1T", "n=8")
SERVE = ("plan", "deepseek-v3", "--serve", "n=144")
PLANNED: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    # plan: option: the words without it, and those that it changes them to
    "train": {
        "tokens": (V3, (*V3[:3], "tokens=7T", "n=2048")),
        "hardware": (V3, (*V3, "hardware=h200")),
        "price": (V3, (*V3, "price=3")),
        "n": (V3, (*V3[:4], "n=1024")),
        "context": (V3, (*V3, "context=8k")),
        "utilisation": (V3, (*V3, "utilisation=0.5")),
        "precision": (V3, (*V3, "precision=fp8")),
        "dp": ((*DENSE, "zero=3", "dp=8"), (*DENSE, "zero=3", "dp=4", "tp=2")),
        "tp": ((*DENSE, "tp=2"), (*DENSE, "tp=4")),
        "pp": ((*DENSE, "pp=2"), (*DENSE, "pp=4")),
        "ep": ((*V3, "pp=16", "ep=64"), (*V3, "pp=16", "ep=32")),
        "zero": ((*DENSE, "tp=2"), (*DENSE, "tp=2", "zero=3")),
        "recompute": ((*DENSE, "tp=8"), (*DENSE, "tp=8", "recompute=full")),
        "microbatch": ((*DENSE, "tp=8"), (*DENSE, "tp=8", "microbatch=2")),
        "full_attention": (V3, (*V3, "full_attention=true")),
        "mtp": (V3, (*V3, "mtp=true")),
    },
    "serve": {
        "hardware": (SERVE, (*SERVE, "hardware=h200")),
        "price": (SERVE, (*SERVE, "price=3")),
        "n": (SERVE, (*SERVE[:3], "n=72")),
        "tp": (SERVE, (*SERVE, "tp=2")),
        "dtype": (SERVE, (*SERVE, "dtype=bf16")),
        "cache_bytes": (SERVE, (*SERVE, "cache_bytes=1")),
        "prompt": (SERVE, (*SERVE, "prompt=8k")),
        "reply": (SERVE, (*SERVE, "reply=2k")),
        "hit_rate": (SERVE, (*SERVE, "hit_rate=0.9")),
        "batch": (SERVE, (*SERVE, "batch=8")),
        "margin": (SERVE, (*SERVE, "margin=0.9")),
        "busy": (SERVE, (*SERVE, "busy=0.5")),
        "prefill_used": (SERVE, (*SERVE, "prefill_used=0.9")),
        "decode_used": (SERVE, (*SERVE, "decode_used=0.9")),
    },
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, options in PLANNED.items() for name in options])
def test_an_option_of_a_plan_changes_its_figures(kind: str, name: str) -> None:
    """And not the line alone that repeats what was asked."""
    one, two = (output_of(*words).splitlines() for words in PLANNED[kind][name])
    changed = [line for line in two if line not in one]
    assert len(changed) >= (1 if name == "price" else 2), changed


@pytest.mark.parametrize(
    "option", ["hardware=h200", "price=3", "dtype=bf16", "cache_bytes=1", "prefill_used=0.9", "decode_used=0.9"]
)
def test_an_option_reaches_the_smallest_replica_too(option: str) -> None:
    """Where no `n` is given, the plan finds the fewest devices, and plans with all else as asked."""
    words = ("plan", "deepseek-v3", "--serve")
    one, two = (output_of(*words, *more).splitlines() for more in ((), (option,)))
    assert len([line for line in two if line not in one]) >= 2


# ---- all


def settings_of(verb: str) -> Iterator[type[Config]]:
    for place in OPTIONS.get(verb, {}).values():
        module, _, name = place.partition(":")
        yield getattr(import_module(module), name)


HERE = Path(__file__).parent.parent
TYPED = "".join(
    file.read_text(encoding="utf-8")
    for room in (
        "cli",
        "teach",
        "factory",
        "serve",
        "plan",
        "recipes",
        "report",
        "train",
        "evals",
        "laws",
        "fine_tuning",
    )
    for file in sorted((HERE / room).glob("*.py"))
)
"""The tests that give options to commands, or settings to what they start."""


@pytest.mark.parametrize("verb", OPTIONS)
def test_the_help_explains_each_option_and_a_test_gives_it(verb: str) -> None:
    shown = output_of(verb, "--help")
    for settings in settings_of(verb):
        for name, described in settings.model_fields.items():
            if name in ("file", "teacher", "filters", "access"):
                continue  # an argument of the command, or settings with a heading of their own
            assert re.search(rf"^  {name}=\S* *\n? *\S", shown, re.M), name
            assert described.description, name
            assert re.search(rf"\b{name}=|[\"']{name}[\"']", TYPED), f"no test gives {verb} {name}="


def test_a_plan_lists_its_options() -> None:
    assert set(TrainPlanSettings.model_fields) == {*PLANNED["train"], "out"}
    assert set(ServePlanSettings.model_fields) == {*PLANNED["serve"], "out"}
    assert set(EvalSettings.model_fields) == {*EVALUATED, *EVAL_ALONE}
    assert {*GenerateSettings.model_fields, *RowSampling.model_fields} == {*GENERATED, *GENERATE_ALONE}
    assert set(ChatSettings.model_fields) == {*CHATTED, *CHAT_ALONE}


def test_every_verb_refuses_an_option_that_it_does_not_have(here: Path) -> None:
    (here / "p.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    words: dict[str, Callable[[], tuple[str, ...]]] = {
        "generate": lambda: ("p.jsonl",),
        "compare": lambda: ("a", "b"),
        "doctor": lambda: (),
        "plan": lambda: ("deepseek-v3", "--serve"),
        **{verb: lambda: ("run", "new") for verb in ("import", "export", "merge", "peft", "sparsify")},
    }
    for verb in {*OPTIONS} - {"distill", "distil", "teach", "train", "serve"}:
        assert "'nonsense'" in output_of(verb, *words.get(verb, lambda: ("run",))(), "nonsense=1", code=2), verb
