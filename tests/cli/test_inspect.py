"""`inspect` gives the figures that are published, and says why one of them is not its own definition's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rorqual.cli.inspecting import count_text, find_model, memory_text
from rorqual.core.config import to_yaml
from rorqual.core.errors import ConfigError
from rorqual.model.load.deepseek_v3 import config_to_hf
from rorqual.model.presets import preset


def test_one_model_from_a_name_a_run_a_yaml_and_a_hub_s_json(tiny: Path, tmp_path: Path) -> None:
    config = find_model(str(tiny))
    (tmp_path / "model.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert find_model(str(tmp_path / "model.yaml")) == find_model(str(tiny / "run.yaml")) == config
    v3 = preset("deepseek-v3")
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(v3)), encoding="utf-8")
    assert find_model(str(tmp_path)) == find_model(str(tmp_path / "config.json")) == find_model("deepseek-v3") == v3


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape("Did you mean 'deepseek-v3'?")):
        find_model("deepseek-v33")
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_v9"}', encoding="utf-8")
    with pytest.raises(ConfigError, match="unknown model_type 'deepseek_v9'"):
        find_model(str(tmp_path / "config.json"))


def test_units() -> None:
    assert [count_text(n) for n in (7, 7_000, 1_234_567, 671_026_419_200)] == ["7", "7.00K", "1.23M", "671.03B"]
    assert [memory_text(n) for n in (512, 2**20, 3 * 2**40)] == ["512 bytes", "1 MiB", "3 TiB"]
