"""Fitted rungs as files: what is saved answers with the same bits after loading, in another process and without what it was fitted with."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import zipfile
from fractions import Fraction
from pathlib import Path
from typing import get_args

import pytest
import skops.io
from bert_folder import WORDS, write_bert
from safetensors.numpy import load_file, save_file

from rorqual.core.errors import ConfigError
from rorqual.tasks.examples import load_function
from rorqual.teach.encoder import load_encoder
from rorqual.teach.examples import AnswerKind, Example
from rorqual.teach.rungs.classifiers import LogisticRegression, NearestNeighbour
from rorqual.teach.rungs.features import Embeddings, TfIdf
from rorqual.teach.rungs.ladder import rungs_of
from rorqual.teach.rungs.rung import TrainingRows
from rorqual.teach.rungs.simple import Majority, UserRule
from rorqual.teach.rungs.storage import load_rung, save_rung

RULE = "def shout(prompt):\n    return prompt.upper()\n"
IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
from rorqual.teach.rungs.storage import load_rung
for file in sorted(Path(sys.argv[1]).iterdir()):
    print([(guess.answer, guess.probability.hex()) for guess in load_rung(file).predict(sys.argv[2:])])
"""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


def rows(count: int, seed: int, kind: AnswerKind) -> list[Example]:
    rng, made = random.Random(seed), []
    for line in range(count):
        a, b, word = rng.randrange(2, 50), rng.randrange(2, 50), rng.choice(WORDS[:5])
        more = rng.random() < 0.5
        fields = {"word": word, "empty": {}, "rest": {"sign": "more" if more else "less"}} | (
            {"b": str(b)} if more else {}
        )
        answer = {
            "label": word,
            "number": str(a + b if more else a - b),
            "JSON": json.dumps(fields),
            "text": f"{word} {a}",
        }[kind]
        made.append(Example(line, f"{word} has {a} w7 and {'gets' if more else 'loses'} {b} w7. How many?", answer))
    return made


def test_a_saved_rung_answers_with_the_same_bits_in_another_process(bert: Path, tmp_path: Path) -> None:
    mine, folder = tmp_path / "mine.py", tmp_path / "rungs"
    mine.write_text(RULE, encoding="utf-8")
    spec, prompts, wanted = f"{mine}:shout", [one.prompt for one in rows(12, 1, "text")] + ["", "w1"], []
    for kind in get_args(AnswerKind):
        rungs = [*rungs_of(kind, rule=load_function(spec, "rule"), rule_spec=spec, encoder=load_encoder(str(bert)))]
        assert len(rungs) >= 5
        for rung in rungs:
            rung.fit(TrainingRows(rows(40, 0, kind), kind))
            file = folder / f"{len(wanted):02}"
            save_rung(rung, file)
            wanted.append(rung.predict(prompts))
            loaded = load_rung(file)
            assert loaded.name == rung.name and loaded.predict(prompts) == wanted[-1]
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(folder), *prompts]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = [[(guess.answer, guess.probability.hex()) for guess in guesses] for guesses in wanted]
    assert done.stdout.splitlines() == [str(one) for one in found]


def test_a_file_with_the_vocabulary_as_a_dictionary_answers_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions before wrote so; now it is one text, which makes the file smaller."""
    rung = NearestNeighbour("near", TfIdf(words=True))
    rung.fit(TrainingRows(rows(40, 0, "label"), "label"))
    save_rung(rung, tmp_path / "new")
    monkeypatch.delattr(TfIdf, "__getstate__")
    save_rung(rung, tmp_path / "old")
    old, new = (load_rung(tmp_path / name).predict(["w1 has w2"]) for name in ("old", "new"))
    assert old == new == rung.predict(["w1 has w2"])
    assert (tmp_path / "new").stat().st_size < 0.7 * (tmp_path / "old").stat().st_size


def test_a_file_of_another_type_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rung"
    rung = Majority()
    rung.fit(TrainingRows(rows(5, 0, "label"), "label"))
    save_rung(rung, file)
    load_rung(file)
    rung.guess = Fraction(1, 2)  # type: ignore[assignment]
    save_rung(rung, file)
    with pytest.raises(ConfigError, match=rf"{file}: .*'fractions\.Fraction'"):
        load_rung(file)
    file.write_bytes(skops.io.dumps({"a": 1}))
    with pytest.raises(ConfigError, match=rf"{file}: the file has a dict, and no rung"):
        load_rung(file)


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rung"
    with pytest.raises(ConfigError, match=rf"{file}: the rung cannot be read"):
        load_rung(file)
    file.write_bytes(b"PK")
    with pytest.raises(ConfigError, match=rf"{file}: the rung cannot be read"):
        load_rung(file)
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("other", "")
    with pytest.raises(ConfigError, match=rf"{file}: the rung cannot be read"):
        load_rung(file)


def test_a_rung_of_embeddings_keeps_the_name_of_its_encoder_and_refuses_other_weights(
    bert: Path, tmp_path: Path
) -> None:
    place, file = tmp_path / "bert", tmp_path / "rung"
    shutil.copytree(bert, place)
    rung = LogisticRegression("l", {"embeddings": Embeddings(load_encoder(str(place)))})
    rung.fit(TrainingRows(rows(40, 0, "label"), "label"))
    save_rung(rung, file)
    assert file.stat().st_size < (place / "model.safetensors").stat().st_size
    weights = load_file(place / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"] + 1
    save_file(weights, place / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"{place}: the encoder has other weights"):
        load_rung(file)
    shutil.rmtree(place)
    with pytest.raises(ConfigError, match=rf"{place}: no encoder"):
        load_rung(file)


def test_a_rule_is_saved_by_its_name(tmp_path: Path) -> None:
    mine, file = tmp_path / "mine.py", tmp_path / "rung"
    mine.write_text(RULE, encoding="utf-8")
    rule = load_function(f"{mine}:shout", "rule")
    with pytest.raises(ConfigError, match="the rule names no file"):
        save_rung(UserRule(rule), file)
    assert not file.exists()
    save_rung(UserRule(rule, f"{mine}:shout"), file)
    mine.write_text(RULE.replace("upper", "lower"), encoding="utf-8")
    with pytest.raises(ConfigError, match="the file of the rule is missing or has changed"):
        load_rung(file)
    mine.write_text(RULE, encoding="utf-8")
    assert load_rung(file).predict(["Ab"])[0].answer == "AB", "the function is read again"
