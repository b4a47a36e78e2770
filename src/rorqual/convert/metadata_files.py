"""Readers and writers for the small files of a checkpoint: config, tokenizer, chat template and generation config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rorqual.convert.files import read_object, read_text
from rorqual.core.errors import CheckpointError, ConfigError, DataError
from rorqual.core.records import TOKENIZER_FILE, RunDir
from rorqual.data.chat import ChatFormat, guess_chat_name, load_chat
from rorqual.data.tokenizer import Tokenizer
from rorqual.model.config import ModelConfig
from rorqual.model.load.find import CheckpointFamily, family_of
from rorqual.ops.quant import BLOCK

CONFIG, GENERATION, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
SPECIALS, TEMPLATE = "special_tokens_map.json", "chat_template.jinja"
KEPT = (CONFIG, GENERATION, TOKENIZER_CONFIG, SPECIALS, TEMPLATE)
"""Names of the files of an imported checkpoint that are stored in the folder `imported/` of the run, so that an export can
restore these files."""
ORIGINALS = "imported"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
CODE = "auto_map"
"""Key of `config.json` under which a checkpoint names its Python code."""


@dataclass(frozen=True)
class CheckpointMetadata:
    """The contents of the small files of a checkpoint.

    `originals` holds the contents of the files to store in the run, and `notes` holds messages to the user.
    """

    family: CheckpointFamily
    model_type: str
    model: ModelConfig
    tokenizer: Tokenizer
    chat: str
    template: str | None
    generation: dict[str, Any]
    quantization: dict[str, Any] | None
    originals: dict[str, bytes]
    notes: tuple[str, ...]


def read_checkpoint_metadata(folder: Path) -> CheckpointMetadata:
    """Read and validate the small files of a checkpoint folder.

    Raises ConfigError, DataError or CheckpointError if a file is invalid. The error message names the file and, if known, the
    key.
    """
    where = str(folder / CONFIG)
    config = read_object(folder, CONFIG)
    if config is None:
        if RunDir(folder).config_file.is_file():
            raise CheckpointError(
                "this folder is already a run",
                where=str(folder),
                remedy="Use the run directly with rorqual chat, eval, train or export.",
            )
        raise CheckpointError(
            f"no {CONFIG}", where=str(folder), remedy="Give a folder with a model in the format of transformers."
        )
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise ConfigError(
            f"key 'model_type' is {kind!r}, not a string", where=where, remedy="Use the model's own config.json."
        )
    family = family_of(kind, where)
    quantization = config.get("quantization_config")
    model = family.config_from_hf(config, where)
    tokenizer = _read_tokenizer(folder, model)
    objects = {name: read_object(folder, name) for name in (GENERATION, TOKENIZER_CONFIG, SPECIALS)}
    template = _template(folder, objects[TOKENIZER_CONFIG] or {})
    generation = objects[GENERATION] or {key: config[key] for key in IDS if config.get(key) is not None}
    originals = {
        name: _drop_code_key(value) for name, value in {**objects, CONFIG: config}.items() if value is not None
    }
    if (text := read_text(folder, TEMPLATE)) is not None:
        originals[TEMPLATE] = text.encode()
    return CheckpointMetadata(
        family, kind, model, tokenizer, guess_chat_name(kind, tokenizer, template), template, generation, quantization,
        originals, tuple(_import_notes(folder, [config, *objects.values()], kind)),
    )  # fmt: skip


def _read_tokenizer(folder: Path, model: ModelConfig) -> Tokenizer:
    where = str(folder / TOKENIZER_FILE)
    source = read_text(folder, TOKENIZER_FILE)
    if source is None:
        raise CheckpointError(
            f"no {TOKENIZER_FILE}",
            where=str(folder),
            remedy=f"Download {TOKENIZER_FILE} too. Convert an older tokenizer format with transformers' `save_pretrained`.",
        )
    tokenizer = Tokenizer(source, where=where)
    if tokenizer.vocab_size > model.vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocabulary has {model.vocab_size}",
            where=where,
            remedy="Use the tokenizer that belongs to this model.",
        )
    return tokenizer


def _template(folder: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """Return the chat template of a checkpoint folder, or None if the folder has no chat template.

    A template in a separate file takes precedence over a template in tokenizer_config.json. If tokenizer_config.json has
    several named templates, the template named `default` is returned.
    """
    template = read_text(folder, TEMPLATE) or tokenizer_config.get("chat_template")
    if isinstance(template, list):
        named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _drop_code_key(value: Mapping[str, Any]) -> bytes:
    return json_bytes({key: item for key, item in value.items() if key != CODE})


def _import_notes(folder: Path, objects: list[dict[str, Any] | None], kind: str) -> list[str]:
    code = sorted(entry.name for entry in folder.iterdir() if entry.suffix == ".py")
    code += [f"the key {CODE}"] if any(CODE in value for value in objects if value) else []
    return [f"code in the checkpoint ({', '.join(code)}) was not run: Rorqual uses its own {kind}"] if code else []


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """Serialise `value` as JSON in the layout that transformers writes. The keys of `value` keep their order."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def exported_metadata_files(
    run: RunDir, family: CheckpointFamily, model: ModelConfig, dtype: str, quantization: Mapping[str, Any] | None
) -> dict[str, bytes]:
    """Return the small files of an export by name. For an imported run, the imported files are restored. config.json is always
    rewritten.

    `dtype` is the value of the key `torch_dtype`: the torch name of the dtype that most weights have. `quantization` is the
    value of the key `quantization_config`, or None if no weight is quantised.
    """
    tokenizer = Tokenizer.load(run.tokenizer_file)
    originals = run.path / ORIGINALS
    files = {name: text.encode() for name in KEPT if (text := read_text(originals, name)) is not None}
    ids: dict[str, Any] = {}
    if files:
        original = read_object(originals, CONFIG) or {}
        ids = {key: original[key] for key in IDS if key in original}
    else:
        chat = load_chat(run, tokenizer)
        ids = _special_token_ids(chat)
        files[GENERATION] = json_bytes(ids)
        files[TOKENIZER_CONFIG] = json_bytes(_tokenizer_config(chat, model))
    config = {**family.config_to_hf(model), **ids, "torch_dtype": dtype}
    if quantization is not None:
        config["quantization_config"] = dict(quantization)
    files[CONFIG] = json_bytes(config)
    files[TOKENIZER_FILE] = tokenizer.source.encode()
    return files


def fp8_config(plain: list[str]) -> dict[str, Any]:
    """Return the `quantization_config` for FP8 with block scales. `plain` lists the linear modules that are not FP8."""
    return {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": plain,
    }


def _special_token_ids(chat: ChatFormat) -> dict[str, Any]:
    stops = list(chat.stop_ids)
    start = {} if chat.bos is None else {"bos_token_id": chat.bos}
    return {**start, "eos_token_id": stops[0] if len(stops) == 1 else stops, "pad_token_id": chat.pad}


def _tokenizer_config(chat: ChatFormat, model: ModelConfig) -> dict[str, Any]:
    token = chat.tokenizer.token
    start = {} if chat.bos is None else {"bos_token": token(chat.bos)}
    template = {} if chat.template is None else {"chat_template": chat.template}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **start,
        "eos_token": token(chat.stop_ids[0]),
        "pad_token": token(chat.pad),
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.max_position_embeddings,
        **template,
    }
