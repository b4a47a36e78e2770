"""Build the package, with its kernels in C if there is a compiler. Its text for a package index is README.md, with links that work there.

A package index resolves no relative links. With `Repository` in `[project.urls]` of pyproject.toml, they lead there; without it, the
text of a link stays and pictures are left out.
"""

import re
import runpy
import subprocess
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def index_text(readme: str, repository: str | None) -> str:
    """Return README's text with absolute links, or without relative links and pictures if the repository's address is unknown."""

    def link(found: re.Match[str]) -> str:
        picture, text, path = found.groups()
        if repository is None:
            return "" if picture else text
        return f"{picture}[{text}]({repository.rstrip('/')}/{'raw' if picture else 'blob'}/main/{path})"

    return LINK.sub(link, readme)


KERNELS = runpy.run_path(str(ROOT / "src/rorqual/engine/native/build.py"))


class BuildWithKernels(build_py):
    """Without kernels, the package works too: `rorqual doctor` says what it lacks."""

    def run(self) -> None:
        super().run()
        source = ROOT / "src/rorqual/engine/native"
        folder = source if self.editable_mode else Path(self.build_lib, "rorqual/engine/native")
        try:
            KERNELS["build"](folder)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"the kernels cannot be compiled: {error}")


class PlatformWheel(bdist_wheel):
    """The kernels are of one platform, and of no version of Python."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
text = index_text((ROOT / "README.md").read_text(encoding="utf-8"), project.get("urls", {}).get("Repository"))
setup(
    long_description=text,
    long_description_content_type="text/markdown",
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel},
    setup_requires=[] if KERNELS["compiler"]() else ["ziglang"],  # pip installs it for the build alone
)
