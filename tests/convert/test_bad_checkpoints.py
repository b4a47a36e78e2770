"""Checkpoints that cannot be meant: refused by name, the headers' faults before a tensor is read, and nothing is left behind.

Each poison is a change to a folder that is imported without it (`test_the_folder_without_poison_is_taken`).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_folders import deepseek, in_fp8, listing, published, qwen3, read_json, stored, write_folder, write_json
from safetensors.torch import load_file, save_file

from rorqual.convert.files import atomic_folder
from rorqual.convert.hf import export_hf, import_hf
from rorqual.core.errors import CheckpointError, RorqualError
from rorqual.core.records import RunDir
from rorqual.model.load.find import known_model_types
from rorqual.model.load.run_directory import read_model_config

INDEX, FIRST, SECOND = (
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
)
NORM = "model.norm.weight"
Spoil = Callable[[Path], object]


def edit(name: str, **keys: Any) -> Spoil:
    """Change keys of one of the folder's JSON files; None deletes."""

    def spoil(folder: Path) -> None:
        data = read_json(folder / name) | keys
        write_json(folder / name, {key: value for key, value in data.items() if value is not None})

    return spoil


def place(tensor: str, shard: str | None) -> Spoil:
    """Change where the index says that a tensor is; None leaves it out."""

    def spoil(folder: Path) -> None:
        index = read_json(folder / INDEX)
        index["weight_map"].pop(tensor, None)
        index["weight_map"] |= {} if shard is None else {tensor: shard}
        write_json(folder / INDEX, index)

    return spoil


def tensors(shard: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    """Change the tensors of a shard."""

    def spoil(folder: Path) -> None:
        state = load_file(folder / shard)
        change(state)
        save_file(state, folder / shard, metadata={"format": "pt"})

    return spoil


def text(name: str, change: Callable[[str], str]) -> Spoil:
    return lambda folder: (folder / name).write_text(change((folder / name).read_text("utf-8")), encoding="utf-8")


def header_of_a_gigabyte(folder: Path) -> None:
    (folder / SECOND).write_bytes((1 << 30).to_bytes(8, "little") + (folder / SECOND).read_bytes()[8:])
    os.truncate(folder / SECOND, 3 << 30)


def pickles_only(folder: Path) -> None:
    for name in (INDEX, FIRST, SECOND):
        (folder / name).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n")


def linked_out(folder: Path) -> None:
    shutil.move(folder / SECOND, folder.parent / "outside.safetensors")
    (folder / SECOND).symlink_to(folder.parent / "outside.safetensors")


def nan_in(shard: str, name: str, value: float) -> Spoil:
    def change(state: dict[str, torch.Tensor]) -> None:
        state[name].view(-1)[-1] = value

    return tensors(shard, change)


OUT = "leads out of the folder"
POISONS: dict[str, tuple[Spoil, str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    "a missing shard": (lambda f: (f / SECOND).unlink(), f"missing shards: {SECOND}"),
    "no index": (lambda f: (f / INDEX).unlink(), f"only {FIRST}, {SECOND}"),
    "a truncated shard": (lambda f: os.truncate(f / SECOND, (f / SECOND).stat().st_size - 1), f"{SECOND}: cannot read"),
    "an empty shard": (lambda f: os.truncate(f / SECOND, 0), f"{SECOND}: cannot read"),
    "a header of a gigabyte": (header_of_a_gigabyte, f"{SECOND}: cannot read"),
    "a pickle": (pickles_only, "pytorch_model.bin is a pickle, which can run any code"),
    "a pickle in the index": (place(NORM, "pytorch_model.bin"), "missing shards: pytorch_model.bin"),
    "a path above the folder": (place(NORM, "../x.safetensors"), OUT),
    "an absolute path": (place(NORM, "/etc/passwd"), OUT),
    "a link out of the folder": (linked_out, OUT),
    "a config that is a link out": (
        lambda f: (shutil.move(f / "config.json", f.parent / "c"), (f / "config.json").symlink_to(f.parent / "c")),
        OUT,
    ),
    "a tensor that the index does not name": (place(NORM, None), f"{NORM} is in .*the index does not name it"),
    "a tensor in another shard than the index says": (place(NORM, FIRST), f"{NORM} is in {SECOND}, but the index says"),
    "a tensor in two shards": (
        tensors(FIRST, lambda s: s.update({NORM: torch.ones(16)})), f"{NORM} is in",
    ),
    "a tensor in no shard": (place("model.layers.9.x", FIRST), rf"model.layers.9.x is not in {FIRST}"),
    "an index that is a list": (lambda f: write_json(f / INDEX, []), "not an object"),
    "an index without a map": (edit(INDEX, weight_map=None), "'weight_map'"),
    "an index whose map holds numbers": (edit(INDEX, weight_map={NORM: 1}), "'weight_map'"),
    "weights and an index": (lambda f: shutil.copy(f / FIRST, f / "model.safetensors"), "both model.safetensors and"),
    "a config that is not JSON": (text("config.json", lambda t: t[:-1]), "config.json: invalid JSON"),
    "an unknown architecture": (edit("config.json", model_type="mamba"), "'mamba'.*" + ".*".join(known_model_types())),
    "no architecture": (edit("config.json", model_type=None), "'model_type' is None"),
    "more layers than weights": (edit("config.json", num_hidden_layers=3), r"missing model\.layers\.2\."),
    "fewer layers than weights": (edit("config.json", num_hidden_layers=1), r"unexpected model\.layers\.1\."),
    "a head that the config ties": (
        edit("config.json", tie_word_embeddings=True), r"lm_head\.weight must be a copy of model\.embed_tokens\.weight",
    ),
    "wider than the weights": (
        edit("config.json", intermediate_size=24), r"mlp\.gate_proj\.weight \(20, 16\).* not \(24, 16\)",
    ),
    "a wrong shape": (
        tensors(SECOND, lambda s: s.update({NORM: torch.ones(15)})), r"model\.norm\.weight \(15,\).* not \(16,\)",
    ),
    "a weight of whole numbers": (
        tensors(SECOND, lambda s: s.update({NORM: torch.ones(16, dtype=torch.int64)})), f"{NORM} has type I64",
    ),
    "weights in four bits": (
        edit("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "quantization_config.quant_method' is 'gptq'",
    ),
    "FP8 without a scale": (
        tensors(SECOND, lambda s: s.update({NORM: torch.ones(16).to(torch.float8_e4m3fn)})), f"{NORM} is F8_E4M3 without",
    ),
    "a scale without FP8": (
        lambda f: (tensors(SECOND, lambda s: s.update({f"{NORM}_scale_inv": torch.ones(1)}))(f),
                   place(f"{NORM}_scale_inv", SECOND)(f)),
        f"{NORM} is F32 with",
    ),
    "a tokenizer that is larger than the vocabulary": (
        edit("config.json", vocab_size=100), "the tokenizer has 263 tokens, but the model's vocabulary has 100",
    ),
    "not a tokenizer": (edit("tokenizer.json", model={}), "tokenizer.json.*'model.vocab'"),
    "NaN": (nan_in(SECOND, NORM, float("nan")), f"{NORM} holds NaN or infinity"),
    "infinity": (nan_in(SECOND, NORM, float("-inf")), f"{NORM} holds NaN or infinity"),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in two shards, to be copied; `model.norm.weight` is in the second."""
    hub = published(qwen3())
    names = sorted(hub, key=lambda name: name == NORM)
    if names.index(NORM) % 2 == 0:
        names.insert(0, names.pop(1)), names.insert(len(names) - 2, names.pop())
    return write_folder(tmp_path_factory.mktemp("good") / "hub", qwen3(), {name: hub[name] for name in names}, shards=2)


@pytest.fixture
def folder(tmp_path: Path, good: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "hub"))


@pytest.mark.parametrize("poison", POISONS)
def test_refused_by_name_and_nothing_is_left(poison: str, folder: Path) -> None:
    spoil, says = POISONS[poison]
    spoil(folder)
    before = sorted(folder.parent.rglob("*"))
    seen: list[int] = []
    with pytest.raises(RorqualError, match=f"(?s){says}") as caught:
        import_hf(folder, folder.parent / "new" / "run", progress=lambda done, total, name: seen.append(done))
    assert str(folder.parent) in str(caught.value)
    assert sorted(folder.parent.rglob("*")) == before
    assert not seen or poison in ("NaN", "infinity"), "tensors were written before the headers were checked"


@pytest.mark.parametrize(
    "case", ["through the cache of the hub", "a link inside", "a head that is a copy", "rotary tables"]
)
def test_the_nearest_valid_folder_is_taken(case: str, folder: Path) -> None:
    if case == "through the cache of the hub":
        cache = folder.parent / "cache"
        (cache / "blobs").mkdir(parents=True)
        snapshot = cache / "snapshots" / "0123abc"
        snapshot.mkdir(parents=True)
        for file in folder.iterdir():
            shutil.move(file, cache / "blobs" / file.name)
            (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
        folder = snapshot
    elif case == "a link inside":
        (folder / SECOND).rename(folder / "blob")
        (folder / SECOND).symlink_to("blob")
    elif case == "a head that is a copy":
        embed = {**load_file(folder / FIRST), **load_file(folder / SECOND)}["model.embed_tokens.weight"]
        for shard in (FIRST, SECOND):
            tensors(shard, lambda s: s.update({"lm_head.weight": embed.clone()} if "lm_head.weight" in s else {}))(
                folder
            )
        edit("config.json", tie_word_embeddings=True)(folder)
    else:
        name = "model.layers.0.self_attn.rotary_emb.inv_freq"
        tensors(FIRST, lambda s: s.update({name: torch.ones(4)}))(folder)
        place(name, FIRST)(folder)
    import_hf(folder, folder.parent / "run" if case[0] != "t" else folder / "run")


def test_code_is_not_run_and_that_is_said(folder: Path) -> None:
    witness = folder.parent / "it ran"
    code = f"from pathlib import Path\nPath({str(witness)!r}).write_text('')\n"
    for name in ("modeling_mine.py", "configuration_mine.py", "tokenization_mine.py"):
        (folder / name).write_text(code, encoding="utf-8")
    edit("config.json", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})(folder)
    edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_mine.Mine", None]})(folder)
    (note,) = import_hf(folder, folder.parent / "run")
    assert "configuration_mine.py, modeling_mine.py, tokenization_mine.py, the key auto_map" in note
    assert "was not run" in note
    export_hf(RunDir(folder.parent / "run"), folder.parent / "out")
    assert not witness.exists()
    assert not any("auto_map" in file.read_text("utf-8") for file in (folder.parent / "out").glob("*.json"))
    assert not list((folder.parent / "out").glob("*.py"))


def test_scales_of_another_block_and_experts_of_two_types_are_refused(tmp_path: Path) -> None:
    hub = in_fp8(published(deepseek()))
    scale = "model.layers.0.self_attn.o_proj.weight_scale_inv"
    folder = write_folder(tmp_path / "blocks", deepseek(), hub | {scale: torch.ones(17, 1)})
    with pytest.raises(CheckpointError, match="each 128 x 128 block needs one scale"):
        import_hf(folder, tmp_path / "run")
    plain = published(deepseek())
    expert = "model.layers.1.mlp.experts.2.down_proj.weight"
    folder = write_folder(tmp_path / "types", deepseek(), plain | {expert: plain[expert].bfloat16()})
    with pytest.raises(CheckpointError, match=r"experts\.0\.down_proj.*BF16, F32.*"):
        import_hf(folder, tmp_path / "run")
    import_hf(folder, tmp_path / "run", dtype="bfloat16")


def test_scales_of_two_types_are_refused_unless_they_are_applied(tmp_path: Path) -> None:
    hub = in_fp8(published(deepseek()))
    scale = "model.layers.1.mlp.experts.2.down_proj.weight_scale_inv"
    folder = write_folder(tmp_path / "hub", deepseek(), hub | {scale: hub[scale].bfloat16()})
    with pytest.raises(CheckpointError, match=r"experts\.0\.down_proj.*as must their scales.*BF16, F32"):
        import_hf(folder, tmp_path / "run")
    import_hf(folder, tmp_path / "run", dtype="float32")


def test_what_transformers_saves_of_a_v3_without_its_prediction_module_is_told_the_remedy(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hub", deepseek(mtp=0), published(deepseek(mtp=0)), num_nextn_predict_layers=1)
    with pytest.raises(CheckpointError, match="set num_nextn_predict_layers to 0"):
        import_hf(folder, tmp_path / "run")
    edit("config.json", num_nextn_predict_layers=0)(folder)
    import_hf(folder, tmp_path / "run")


@pytest.mark.parametrize("part", ["embed_tokens", "shared_head.head"])
def test_a_copy_of_a_prediction_module_that_differs_is_refused(part: str, tmp_path: Path) -> None:
    hub, name = published(deepseek(mtp=2)), f"model.layers.3.{part}.weight"
    hub[name][-1, -1] += 1
    folder = write_folder(tmp_path / "hub", deepseek(mtp=2), hub)
    with pytest.raises(CheckpointError, match=f"{name} must be a copy"):
        import_hf(folder, tmp_path / "run")
    del hub[name]
    import_hf(write_folder(tmp_path / "without", deepseek(mtp=2), hub), tmp_path / "run")


def test_weights_without_an_indexer_are_named_with_the_remedy(tmp_path: Path) -> None:
    sparse, dense = deepseek(sparse=True), deepseek()
    whole = published(sparse)
    plain = {name: tensor for name, tensor in whole.items() if ".indexer." not in name}
    folder = write_folder(tmp_path / "hub", sparse, plain)
    with pytest.raises(CheckpointError, match=r"missing model\.layers\.0\.self_attn\.indexer\.wq_b\.weight") as error:
        import_hf(folder, tmp_path / "run")
    assert "use the config.json of the dense model" in str(error.value) and "rorqual sparsify" in str(error.value)
    import_hf(write_folder(tmp_path / "dense", dense, plain), tmp_path / "run")
    assert read_model_config(RunDir(tmp_path / "run")) == dense
    one = next(name for name in whole if ".indexer." in name)
    folder = write_folder(tmp_path / "torn", sparse, {name: whole[name] for name in whole if name != one})
    with pytest.raises(CheckpointError, match="indexer") as error:
        import_hf(folder, tmp_path / "torn-run")
    assert "dense model" not in str(error.value), "one weight is lost: the file is damaged"
    import_hf(write_folder(tmp_path / "whole", sparse, whole), tmp_path / "whole-run")


# ---- killed, full, twice at once


def in_a_child(work: Callable[[], object]) -> int:
    """Run `work` in a child process; its exit status, negative where a signal ended it."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        except OSError as error:
            status = error.errno or 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killer(share: float) -> Callable[[int, int, str], None]:
    """A progress that kills its own process when this share of the bytes is done."""

    def progress(done: int, total: int, name: str) -> None:
        if done >= share * total:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


def small_files(limit: int) -> None:
    """No file may become larger than this, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def test_an_export_that_was_killed_keeps_its_whole_shards(folder: Path) -> None:
    run, out, straight = RunDir(folder.parent / "run"), folder.parent / "out", folder.parent / "straight"
    import_hf(folder, run.path)
    how: dict[str, Any] = {"shard_bytes": 5_000, "dtype": "bfloat16"}
    export_hf(run, straight, **how)
    part = folder.parent / ".out.part"
    for share in (0.4, 0.7):
        assert in_a_child(lambda share=share: export_hf(run, out, **how, progress=killer(share))) == -signal.SIGKILL
        assert not out.exists()
    sizes = {file.name: file.stat().st_size for file in straight.iterdir()}
    files = [file for file in part.glob("*.safetensors") if file.stat().st_size == sizes[file.name]]
    kept = {file.name: file.stat().st_mtime_ns for file in files}
    assert 1 < len(kept) < len(list(straight.glob("*.safetensors")))
    export_hf(run, out, **how)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    assert listing(out) == listing(straight)
    assert not part.exists()


@pytest.mark.parametrize("change", ["another type", "another size", "another checkpoint"])
def test_what_was_left_of_another_export_is_not_kept(change: str, folder: Path) -> None:
    run, out = RunDir(folder.parent / "run"), folder.parent / "out"
    import_hf(folder, run.path)
    how: dict[str, Any] = {"shard_bytes": 5_000}
    weights, manifest = run.step_dir(0) / "model.safetensors", run.step_dir(0) / "whole.json"

    def save_plus(number: int) -> int:
        save_file({name: tensor + number for name, tensor in load_file(weights).items()}, weights)
        size = weights.stat().st_size
        write_json(manifest, json.loads(manifest.read_text("utf-8")) | {weights.name: size})
        return size

    size = save_plus(0)
    assert in_a_child(lambda: export_hf(run, out, **how, progress=killer(0.6))) == -signal.SIGKILL
    if change == "another type":
        how["dtype"] = "float16"
    elif change == "another size":
        how["shard_bytes"] = 6_000
    else:
        assert save_plus(1) == size, "only the time tells"
    export_hf(run, out, **how)
    export_hf(run, folder.parent / "straight", **how)
    assert listing(out) == listing(folder.parent / "straight")


def test_a_run_is_no_checkpoint_to_import(folder: Path) -> None:
    import_hf(folder, folder.parent / "run")
    with pytest.raises(CheckpointError, match="already a run"):
        import_hf(folder.parent / "run", folder.parent / "again")
    assert not (folder.parent / "again").exists()


def test_a_full_disk_leaves_no_half_file(folder: Path) -> None:
    run = RunDir(folder.parent / "run")
    before = listing(folder.parent)

    def work(convert: Callable[[], object]) -> Callable[[], None]:
        def limited() -> None:
            small_files(12_000)
            convert()

        return limited

    assert in_a_child(work(lambda: import_hf(folder, run.path))) not in (0, 1)
    assert listing(folder.parent) == before
    import_hf(folder, run.path)
    before = listing(folder.parent)
    assert in_a_child(work(lambda: export_hf(run, folder.parent / "out"))) not in (0, 1)
    assert not any(name.startswith("out") for name in listing(folder.parent))
    export_hf(run, folder.parent / "out")
    assert stored(folder.parent / "out") == stored(folder)


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(RorqualError, match=r"bytes are needed, but only [\d,]+ are free"),
        atomic_folder(tmp_path / "new" / "x", needs=1 << 60),
    ):
        raise AssertionError
    assert not list(tmp_path.iterdir())


def test_two_at_once_are_refused(folder: Path) -> None:
    out = folder.parent / "run"
    with atomic_folder(out, needs=0) as making:
        (making / "mine").write_text("mine", encoding="utf-8")
        with pytest.raises(RorqualError, match="another process is writing to this path"):
            import_hf(folder, out)
        assert (making / "mine").exists()
    assert (out / "mine").exists()
