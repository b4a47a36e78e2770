"""Build the package. Its text for a package index is README.md, with links that work there.

A package index resolves no relative links. With `Repository` in `[project.urls]` of pyproject.toml, they lead there; without it, the
text of a link stays and pictures are left out.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

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


project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
text = index_text((ROOT / "README.md").read_text(encoding="utf-8"), project.get("urls", {}).get("Repository"))
setup(long_description=text, long_description_content_type="text/markdown")
