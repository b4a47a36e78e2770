"""A small BERT encoder with random weights, as a folder in the layout of Sentence Transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

WORDS = [f"w{n}" for n in range(40)]
LONGEST = 12


def write_bert(folder: Path) -> Path:
    """Write an encoder with weights as large as trained ones into `folder`, and return it."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
        max_position_embeddings=20, layer_norm_eps=1e-3,
    )  # fmt: skip
    model = BertModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.5)
    model.save_pretrained(folder)
    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", ",", "!", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_padding(length=30)  # as in the files of Sentence Transformers
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": LONGEST}), encoding="utf-8")
    return folder
