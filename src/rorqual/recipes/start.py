"""Settings that recipes share: the model that a run starts from, and its objectives and optimizer."""

from __future__ import annotations

from pathlib import Path

from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.data.chat import guess_chat_name, read_chat_name
from rorqual.data.chat.find import DEFAULT
from rorqual.data.tokenizer import BASE_VOCAB, Tokenizer
from rorqual.model.config import ModelConfig
from rorqual.model.load.run_directory import read_model_config
from rorqual.recipes.models import Size, model_of
from rorqual.train.objectives import IndexerSparse, MultiToken, NextToken, Objective, SequenceBalance
from rorqual.train.optim import AdamWConfig, MuonConfig, OptimConfig
from rorqual.train.run import StartConfig
from rorqual.train.schedule import LearningRateSchedule

LARGEST_VOCABULARY = 1_000_000
"""Largest vocabulary of a tokenizer that a recipe trains. Published models have at most about 260,000 tokens."""


def start_settings(
    start: str, tokenizer: str, size: Size, context: int, default_size: Size = "small"
) -> tuple[StartConfig, ModelConfig, str]:
    """Return the settings `start`, `model` and `chat` of a run. `default_size` is the recipe's default value of `size`.

    If `start` is given, the run has the model and the chat format of the run `start`. If `start` is empty, the run starts from
    a new model of the size `size`. The tokenizer determines the model's vocabulary, and the tokenizer's special tokens
    determine the chat format.

    Raises ConfigError if `start` is given with another size or tokenizer than the defaults, which would have no effect, or if
    the vocabulary of `bpe:SIZE` is larger than `LARGEST_VOCABULARY`.
    """
    if start:
        if tokenizer != "bytes" or size != default_size:
            raise ConfigError(
                f"size={size} and tokenizer={tokenizer} have no effect on the model of an existing run",
                where="start",
                remedy=f"Remove size= and tokenizer=, or train a new model without from={start}.",
            )
        run = RunDir(Path(start))
        run.checkpoint()  # raise an error for a missing checkpoint before anything is written
        return StartConfig(run=start, tokenizer="bytes"), read_model_config(run), read_chat_name(run)
    chat = DEFAULT
    if tokenizer == "bytes":
        vocab = BASE_VOCAB
    elif tokenizer.startswith("bpe:") and tokenizer[4:].isdigit():
        vocab = int(tokenizer[4:])
        if vocab > LARGEST_VOCABULARY:
            raise ConfigError(
                f"a vocabulary of {vocab:,} tokens is more than {LARGEST_VOCABULARY:,}",
                where="tokenizer",
                remedy="Use tokenizer=bpe:SIZE with a smaller SIZE, such as 1024.",
            )
    else:
        loaded = Tokenizer.load(Path(tokenizer))
        vocab, chat = loaded.vocab_size, guess_chat_name("", loaded, None)
    return StartConfig(tokenizer=tokenizer), model_of(size, vocab_size=vocab, context=context), chat


def supervised_objectives(model: ModelConfig, sequence_balance: float = 0.0) -> tuple[Objective, ...]:
    """Return the next-token loss and further losses: the MTP loss (with MTP modules), V3's sequence-wise balance loss
    (if requested), and the loss of the indexers (with sparse attention)."""
    depth = model.num_nextn_predict_layers
    terms: list[Objective] = [NextToken()]
    if depth:
        terms.append(MultiToken(depth=depth))
    if sequence_balance:
        terms.append(SequenceBalance(coefficient=sequence_balance))
    return (*terms, *indexer_objectives(model, depth))


def indexer_objectives(model: ModelConfig, depth: int = 0) -> tuple[Objective, ...]:
    """Return the objective `IndexerSparse` if an attention of the model has an indexer, else an empty tuple.

    The other objectives of a recipe give the indexers no gradient.

    `depth` is the number of MTP modules that the run trains.
    """
    return (IndexerSparse(depth=depth),) if any(attention.has_indexer for attention in model.attentions) else ()


def supervised_optimizer(lr: float = 0.0) -> OptimConfig:
    """Return the optimizer of supervised recipes: Muon for hidden matrices, AdamW for all other parameters.

    The learning rates suit new models of the sizes in `recipes.models`. These learning rates were chosen by the measurements in
    docs/LOG.md (section 'The quickstart's recipe'). If `lr` is set, as for a pretrained model, AdamW trains all parameters at
    the learning rate `lr`.
    """
    if lr:
        return finetune_optim(lr)
    return MuonConfig(
        lr=0.012, adamw=AdamWConfig(lr=4e-3, betas=(0.9, 0.98)), schedule=LearningRateSchedule(warmup=50, decay=0.4)
    )


def finetune_optim(lr: float) -> AdamWConfig:
    """Return AdamW with the learning rate `lr`, for a model that is already trained."""
    return AdamWConfig(lr=lr, betas=(0.9, 0.95), schedule=LearningRateSchedule(warmup=3, decay=0.5, final=0.1))
