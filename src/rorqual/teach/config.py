"""Settings of `rorqual teach`."""

from __future__ import annotations

from rorqual.core.config import Config, Count, Natural, NonNegative, Positive, Seed


class TeachConfig(Config):
    """Settings of a taught model. All but `threads`, `quiet` and `track` decide the result.

    - `file`: JSONL, JSON, CSV, TSV or Parquet file of examples. `test`: file of test examples. Without it, a part of `file` is held out.
    - `prompt`, `answer`, `reasoning`: columns; several prompt or answer columns are separated by commas.
    - `base`: model to start from: the folder of a run, a Hugging Face folder, a GGUF file, or ORG/NAME on the hub. "" chooses one.
    - `grader`: function ./mine.py:function of (prompt, gold answer, reply) that returns whether the reply is right.
    - `rule`: function ./mine.py:function of the prompt that returns an answer, measured beside the model.
    - `teacher`: address of an OpenAI-compatible server, or the folder of a run, that writes reasons for the answers. `model` is the name
      of the server's model. `budget`, `price_in` and `price_out` bound what it costs; prices are per million tokens.
    - `minutes`: time from the start to the end of training, without the baselines.
    - `count`: largest number of test examples that are measured.
    - `track`: trackers of the training metrics, separated by commas.
    """

    file: str
    test: str = ""
    prompt: str = ""
    answer: str = ""
    reasoning: str = ""
    base: str = ""
    grader: str = ""
    rule: str = ""
    teacher: str = ""
    model: str = ""
    budget: NonNegative = 0.0
    price_in: NonNegative = 0.0
    price_out: NonNegative = 0.0
    minutes: Positive = 20.0
    count: Count = 500
    seed: Seed = 0
    threads: Natural = 0
    quiet: bool = False
    track: str = ""
