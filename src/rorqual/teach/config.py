"""Settings of `rorqual teach`."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from rorqual.core.config import Config, Count, Natural, NonNegative, Positive, Seed, Share, load_yaml, to_yaml
from rorqual.core.errors import ConfigError
from rorqual.factory.config import check_prices


class TeachConfig(Config):
    """The settings of one run of `rorqual teach`."""

    file: str
    test: str = Field("", description="file of test examples; default: a part of FILE")
    prompt: str = Field("", description="columns of the prompt, separated by commas")
    answer: str = Field("", description="columns of the answer; several become JSON")
    reasoning: str = Field("", description="column of the worked solution")
    base: str = Field(
        "", description="RUN, Hugging Face folder, FILE.gguf, ORG/NAME, or none; default: SmolLM2-135M-Instruct"
    )
    grader: str = Field(
        "", description="./mine.py:function of (prompt, gold answer, reply) that returns whether the reply is right"
    )
    encoder: str = Field(
        "",
        description="folder or .zip of a BERT encoder for embeddings, or none; default: MiniLM, downloaded once (83 MB)",
    )
    rule: str = Field("", description="./mine.py:function of the prompt that returns an answer, as a rung")
    rung: str = Field("", description="name of the rung to use; default: the one that does best on held-out examples")
    promise: Share = Field(
        0.0,
        description="accuracy of the answers that are given; of other prompts, the served model says it is not sure",
    )
    teacher: str = Field(
        "", description="server's address or RUN that writes reasons for the answers, or new rows with write="
    )
    write: Natural = Field(0, description="for a teacher: maximum new rows that it writes, instead of reasons")
    model: str = Field("", description="for a teacher's server: name of its model")
    budget: NonNegative = Field(0.0, description="for a teacher's server: maximum money to spend")
    price_in: NonNegative = Field(0.0, description="price per million prompt tokens")
    price_out: NonNegative = Field(0.0, description="price per million reply tokens")
    minutes: Positive = Field(20.0, description="time from the start to the end of the language model's training")
    count: Count = Field(500, description="maximum test examples")
    seed: Seed = Field(0, description="seed of splits, training and sampling")
    threads: Natural = Field(0, description="threads; 0: all cores")
    quiet: bool = Field(False, description="print no progress")
    track: str = Field("", description="tensorboard or wandb, or both, separated by a comma")

    @model_validator(mode="after")
    def _check_teacher(self) -> Self:
        check_prices(self)
        if self.write and not self.teacher:
            raise ValueError(
                "write= needs a teacher that writes the rows: give teacher=ADDRESS model=NAME, or teacher=RUN"
            )
        return self

    @property
    def trackers(self) -> list[str]:
        """The names of the trackers in the setting `track`."""
        return [name.strip() for name in self.track.split(",") if name.strip()]


def settings_text(config: TeachConfig) -> str:
    """Return as YAML the settings that affect the taught model, and the digests of all files that the settings name."""
    encoders = (config.encoder, f"{config.encoder}/model.safetensors") if config.encoder else ()
    functions = (config.rule.rpartition(":")[0], config.grader.rpartition(":")[0])
    named = (config.file, config.test, *functions, *encoders)
    files = dict.fromkeys(name for name in named if name and Path(name).is_file())
    digests = (f"# sha256 {hashlib.sha256(Path(name).read_bytes()).hexdigest()}  {name}\n" for name in files)
    return to_yaml(config, exclude={"threads", "quiet", "track"}) + "".join(digests)


def has_more_minutes(config: TeachConfig, stored: Path) -> bool:
    """Return whether the folder of the settings file `stored` was begun with fewer minutes.

    Raises ConfigError if other settings or files differ. The settings `promise`, `threads`, `quiet` and `track` may differ.
    """
    if not stored.is_file():
        return False
    text = stored.read_text(encoding="utf-8")
    values = load_yaml(text)
    longer = float(values["minutes"]) < config.minutes
    free = {name: values[name] for name in ("promise", *["minutes"] * longer) if name in values}
    known, own = text.splitlines(), settings_text(config.model_copy(update=free)).splitlines()
    if known != own:
        changed = (re.sub("# sha256 [0-9a-f]+  ", "the content of ", line) for line in own if line not in known)
        raise ConfigError(
            "this folder was begun with other settings or another content of a file; new are: "
            + ("; ".join(changed) or "none, but some are gone"),
            where=str(stored),
            remedy="Give the same settings and files to resume, or another out= to begin anew. `rorqual compare` needs the same test "
            "examples in both folders: with more rows, give both test=FILE.",
        )
    return longer
