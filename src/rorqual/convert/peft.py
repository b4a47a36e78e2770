"""Import and export of LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rorqual.convert.files import (
    atomic_folder,
    chat_settings,
    check_target_unused,
    copy_chat_template,
    new_run_folder,
    path_inside,
    read_object,
)
from rorqual.core.config import parse_config
from rorqual.core.errors import CheckpointError, ConfigError
from rorqual.core.records import RunDir, write_json
from rorqual.model.adapter import Adapter, LoRA, read_adapter_info
from rorqual.model.adapter.files import OpenedAdapter, check_trained_tensors, record_base_checkpoint
from rorqual.model.adapter.lora import named_linear_maps
from rorqual.model.decoder import Decoder
from rorqual.model.load.find import family_for
from rorqual.model.load.names import list_first_names
from rorqual.model.load.run_directory import read_model_config
from rorqual.model.meta_device import build_on_meta_device

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<letter>[AB])\.weight")

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "init_lora_weights": (True, False, "gaussian"),  # PiSSA and OLoRA, for example, change the base weights
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
}
"""Keys of `adapter_config.json` and their accepted values.

Import rejects values of these keys that are not accepted, because such values may need features that Rorqual's LoRA lacks, such
as trained biases."""
TAKEN = ("r", "lora_alpha", "use_rslora")
"""Keys of `adapter_config.json` that are imported."""
WITHOUT_EFFECT = (
    "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision", "target_modules",
)  # fmt: skip
"""Keys of `adapter_config.json` that import ignores. The ignored keys describe the training or select modules. The adapter's
tensor names already determine the modules."""


def write_peft(run: RunDir, dst: Path, *, base: str = "") -> Path:
    """Export the newest checkpoint of a LoRA run as a folder that `peft` can load onto the published model. Return the folder
    `dst`.

    `base` is the exported value of `base_model_name_or_path`. The default value is the path of the base run.

    Raises ConfigError if `run` is not a LoRA run, if its model fits no model family of Hugging Face, or if peft would adapt
    other modules than the run.
    """
    check_target_unused(dst)
    checkpoint = run.checkpoint()
    adapter = read_adapter_info(checkpoint)
    if adapter is None or not isinstance(adapter.tune, LoRA):
        raise ConfigError(
            "this run is not a LoRA run, and export in PEFT's format supports only LoRA",
            where=str(run.path),
            remedy="Export a whole model with `rorqual export`. If the run is an adapter, run `rorqual merge` first.",
        )
    model, tune = build_on_meta_device(read_model_config(run)), adapter.tune
    published_names, adapted = published_linear_names(model), tune.find_targets(model)
    refuse_dense_ffn_adapters(model, adapted, str(run.path))
    adapter_tensors = OpenedAdapter(checkpoint, adapter).tensors(tune.trained_shapes(model))
    tensors: dict[str, Tensor] = {}
    for name, tensor in adapter_tensors.items():
        module, _, letter = name.rpartition(".lora_")
        tensors[f"{PREFIX}{published_names[module]}.lora_{letter}.weight"] = tensor
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or adapter.base.run,
        "r": tune.r,
        "lora_alpha": int(tune.alpha) if tune.alpha == int(tune.alpha) else tune.alpha,
        "lora_dropout": 0.0,
        "use_rslora": tune.use_rslora,
        "target_modules": shortest_suffixes(
            [published_names[name] for name in adapted], list(published_names.values())
        ),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    with atomic_folder(dst, needs=sum(t.numel() * t.element_size() for t in tensors.values())) as folder:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        write_json(folder / CONFIG, config)
    return dst


def read_peft(src: Path, base: RunDir, out: Path) -> Path:
    """Import a LoRA adapter that `peft` wrote for the model of the run `base`. Return `out`, the new run directory.

    The new run holds only the adapter, like a LoRA run.

    Raises ConfigError that names unsupported LoRA options. Raises CheckpointError for adapter tensors that do not fit the
    model, and for a pickle. A pickle is never opened.
    """
    check_target_unused(out)
    settings = read_config(src)
    checkpoint, config = base.checkpoint(), read_model_config(base)
    model = build_on_meta_device(config)
    tensors = rename_to_internal(
        read_tensors(src), {t: o for o, t in published_linear_names(model).items()}, str(src / WEIGHTS)
    )
    modules = sorted({name.rpartition(".lora_")[0] for name in tensors})
    tune = LoRA(targets=tuple(shortest_suffixes(modules, [name for name, _ in named_linear_maps(model)])), **settings)
    check_trained_tensors(tensors, tune.trained_shapes(model), where=str(src / WEIGHTS))
    adapter = Adapter(base=record_base_checkpoint(checkpoint, named=str(base.path), seen_from=out), tune=tune)
    files = adapter.file_contents(tensors)
    data = {
        "recipe": "adapter",
        **chat_settings(base),
        "model": config.model_dump(mode="json"),
        "start": {"run": str(base.path), "tokenizer": "bytes"},
        "tune": tune.model_dump(mode="json"),
    }
    with new_run_folder(out, data, base.tokenizer_file.read_bytes(), needs=sum(map(len, files.values()))) as step:
        copy_chat_template(base, step.parent)
        for name, content in files.items():
            (step / name).write_bytes(content)
    return out


def published_linear_names(model: Decoder) -> dict[str, str]:
    """Map the name of each linear module of the main layers (without MTP) to the module's name in the Hugging Face model."""
    names = {entry.internal: entry for entry in family_for(model.config).name_map(model.config).entries}
    entries = {name: names[f"{name}.weight"] for name, _ in named_linear_maps(model) if f"{name}.weight" in names}
    return {
        name: entry.published[0].removesuffix(".weight") for name, entry in entries.items() if entry.kind == "alone"
    }


def refuse_dense_ffn_adapters(model: Decoder, modules: Iterable[str], where: str) -> None:
    """Raise ConfigError if dense FFNs or shared experts are adapted in a model with routed experts.

    transformers 5 stacks the routed experts. peft then treats every `gate_proj`, `up_proj` and `down_proj` of the model as a
    projection of the routed experts and adapts the routed experts instead.
    """
    if model.routing_ffns() and (networks := [name for name in modules if ".ffn." in name]):
        raise ConfigError(
            f"peft would adapt the routed experts instead of {networks[0]}",
            where=where,
            remedy="Restrict tune.targets to attention modules, or run `rorqual merge` and export the merged model.",
        )


def shortest_suffixes(chosen: list[str], every: list[str]) -> list[str]:
    """Return a short list for `target_modules` that selects the modules `chosen` and no other module of `every`.

    If all modules whose names end with the same component are chosen, this component replaces the full names of the modules.
    """
    last = {name.rpartition(".")[2] for name in chosen}
    complete = {word for word in last if all(name in chosen for name in every if name.rpartition(".")[2] == word)}
    return sorted(complete) + sorted(name for name in chosen if name.rpartition(".")[2] not in complete)


def read_config(src: Path) -> dict[str, Any]:
    """Return `r`, `alpha` and `use_rslora` of an `adapter_config.json`.

    Raises ConfigError that names all other options that would change the model.
    """
    where = str(src / CONFIG)
    data = read_object(src, CONFIG)
    if data is None:
        raise CheckpointError(f"no {CONFIG}", where=str(src), remedy="Give a folder that peft's save_pretrained wrote.")
    unsupported = [key for key, values in NEUTRAL.items() if key in data and data[key] not in values]
    known = {*NEUTRAL, *TAKEN, *WITHOUT_EFFECT}
    # Ignore options that are None, false or empty, because newer versions of peft write many of them.
    unsupported += [key for key, value in data.items() if key not in known and value not in (None, False, {}, [])]
    if unsupported:
        raise ConfigError(
            "unsupported LoRA options: " + ", ".join(f"{key}={data[key]!r}" for key in sorted(unsupported)),
            where=where,
            remedy="Merge the adapter with peft (merge_and_unload) and import the merged model. An activated LoRA "
            "(alora_invocation_tokens) cannot be merged.",
        )
    if missing := [key for key in ("r", "lora_alpha") if key not in data]:
        raise ConfigError(f"missing keys: {', '.join(missing)}", where=where, remedy="Download the file again.")
    settings = {"r": data["r"], "alpha": data["lora_alpha"], "use_rslora": data.get("use_rslora", False)}
    parse_config(LoRA, settings, where=where)
    return settings


def read_tensors(src: Path) -> dict[str, Tensor]:
    """Return the tensors of `adapter_model.safetensors` in fp32. Raises CheckpointError if the folder `src` has only a
    pickle."""
    if not (src / WEIGHTS).exists():
        what = f"{PICKLE} is a pickle, which can run any code when it is opened; it was not opened"
        raise CheckpointError(
            what if (src / PICKLE).exists() else f"no {WEIGHTS}",
            where=str(src),
            remedy="Save the adapter with peft's save_pretrained(..., safe_serialization=True).",
        )
    file = path_inside(src, WEIGHTS, str(src))
    try:
        return {name: tensor.float() for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read: {error}", where=str(file), remedy="Download the file again.") from None


def rename_to_internal(tensors: Mapping[str, Tensor], ours: Mapping[str, str], where: str) -> dict[str, Tensor]:
    """Rename PEFT tensors to the names of a run. `ours` maps module names of the Hugging Face model to module names of the run.

    Raises CheckpointError that lists the PEFT tensors that adapt no linear module.
    """
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        match = KEY.fullmatch(name)
        if match is None or match["module"] not in ours:
            unknown.append(name)
        else:
            renamed[f"{ours[match['module']]}.lora_{match['letter']}"] = tensor
    if unknown or not renamed:
        raise CheckpointError(
            f"tensors that adapt no module of this model: {list_first_names(unknown)}"
            if unknown
            else "the file holds no adapter tensors",
            where=where,
            remedy="Give the base model of this adapter. Adapters of embedding, head and routed experts are not supported.",
        )
    return renamed
