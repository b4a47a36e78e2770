"""The documentation site builds without a warning, and everything in it leads somewhere."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import playwright.sync_api as playwright
import pytest
from markdown import markdown
from test_figures import script

import rorqual

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
hooks = script("scripts", "site_hooks")
diagrams = script("scripts", "diagrams")


class Html(HTMLParser):
    """The anchors, the links, the loaded files and the texts of paragraphs of a built page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors, self.links, self.loaded = set[str](), list[str](), list[str]()
        self.paragraphs: list[str] = []
        self.open: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found and tag != "meta"}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in ("script", "img", "iframe", "source") and "src" in found:
            self.loaded.append(found["src"])
        elif tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "preconnect"):
            self.loaded.append(found["href"])
        if tag in ("p", "li"):
            self.open, _ = tag, self.paragraphs.append("")
        elif tag in ("pre", "table", "code"):
            self.open = None

    def handle_endtag(self, tag: str) -> None:
        if tag in ("p", "li"):
            self.open = None

    def handle_data(self, data: str) -> None:
        if self.open:
            self.paragraphs[-1] += data


def pages(site: Path) -> dict[Path, Html]:
    """Each HTML file of a built site, but the page for missing pages, whose addresses begin at the server's root."""
    files = [path for path in sorted(site.rglob("*.html")) if path.name != "404.html"]
    return {path: Html(path.read_text(encoding="utf-8")) for path in files}


def outside(link: str) -> bool:
    return bool(re.match(r"[a-z][a-z+.-]*:|//", link))


def dead_links(site: Path, found: dict[Path, Html]) -> Iterator[str]:
    """Internal links and loaded files that are not there, and anchors that a page does not have."""
    for path, page in found.items():
        where = path.relative_to(site).as_posix()
        for link in [*page.links, *page.loaded]:
            if outside(link):
                continue
            target, _, anchor = unquote(unescape(link)).partition("#")
            file = (path.parent / target).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file():
                yield f"{where}: {link}"
            elif anchor and file.suffix == ".html" and anchor not in found[file].anchors:
                yield f"{where}: {link} (no such anchor)"


def loads_from_the_network(site: Path, found: dict[Path, Html]) -> Iterator[str]:
    for path, page in found.items():
        yield from (f"{path.relative_to(site)}: loads {link}" for link in page.loaded if outside(link))
    for path in site.rglob("*.css"):
        for link in re.findall(r"url\(['\"]?((?:https?:)?//[^)'\"]+)", path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)}: loads {link}"


def text_that_was_to_be_a_list(site: Path, found: dict[Path, Html]) -> Iterator[str]:
    """Lists and tables that the site's Markdown reads as text: a blank line is missing, or four spaces of indentation."""
    for path, page in found.items():
        for text in page.paragraphs:
            for line in re.findall(r"^(?:[-*] |\d+\. |\|.*\|$|```).*", text, re.M):
                yield f"{path.relative_to(site)}: {line[:80]}"


def unreachable(site: Path, found: dict[Path, Html]) -> Iterator[str]:
    """Pages of docs that the start page's navigation does not lead to."""
    start = found[site / "index.html"]
    reached = {(site / link.partition("#")[0]).resolve() for link in start.links if link and not outside(link)}
    for path in DOCS.rglob("*.md"):
        built = site / path.relative_to(DOCS).with_suffix(".html")
        if built not in reached and built != site / "index.html":
            yield path.relative_to(ROOT).as_posix()


def undocumented(site: Path) -> Iterator[str]:
    """Names of the public interface that the reference does not show with the beginning of their docstring."""
    text = (site / "reference" / "python.html").read_text(encoding="utf-8")
    shown = " ".join(unescape(re.sub(r"<[^>]+>", "", text)).split())
    for name, module in rorqual._MODULES.items():
        source = Path(importlib.util.find_spec(module).origin or "")  # type: ignore[union-attr]
        body = ast.parse(source.read_text(encoding="utf-8")).body
        (node,) = (n for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name)
        first = re.sub(r"[`*\\]", "", (ast.get_docstring(node) or "no docstring").split("\n\n")[0])
        if f'id="{module}.{name}"' not in text or " ".join(first.split()) not in re.sub(r"[`*\\]", "", shown):
            yield name


def search(site: Path, word: str) -> tuple[int, list[str]]:
    """How many pages a browser finds that opens the site from the disk, and what it asks the network for."""
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, asked = browser.new_page(viewport={"width": 1300, "height": 900}), list[str]()
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "how-to" / "serve.html").as_uri())
        page.fill("input.md-search__input", word, timeout=120_000)
        page.wait_for_selector(".md-search-result__item", state="attached", timeout=120_000)
        found = page.locator(".md-search-result__item").count()
        browser.close()
    return found, [
        address for address in asked if outside(address) and not address.startswith(("file:", "data:", "blob:"))
    ]


def test_a_line_that_begins_with_a_formula_stays_in_its_paragraph() -> None:
    text = hooks.with_formulas("A layer has\n$N_r$ routed experts, *each* of them small.\n$x$ is its input.")
    html = markdown(text)
    assert html.startswith("<p>") and html.count("<p>") == 1 and "<em>each</em>" in html and html.count("<math") == 2


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--config-file", ROOT / "mkdocs.yml", "--site-dir", folder],
        check=False, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and "WARNING" not in done.stderr, f"{done.stdout}\n{done.stderr}"
    return folder


def test_the_site_builds_and_leads_somewhere(site: Path) -> None:
    found = pages(site)
    assert len(found) > 40
    problems = [
        *dead_links(site, found),
        *loads_from_the_network(site, found),
        *text_that_was_to_be_a_list(site, found),
    ]
    problems += [f"not in the navigation: {name}" for name in unreachable(site, found)]
    problems += [f"not in the reference: {name}" for name in undocumented(site)]
    assert not problems, "\n".join(problems)
    verbs = (site / "reference" / "verbs.html").read_text(encoding="utf-8")
    assert 'id="rorqual-quickstart"' in verbs and "Example:" in verbs
    external = sorted({link for page in found.values() for link in page.links if outside(link)})
    print("external links, not fetched:", *external, sep="\n  ")


@pytest.mark.browser
def test_a_browser_searches_the_site_from_the_disk(site: Path) -> None:
    assert CHROMIUM is not None, "No Chromium here: apt-get update && apt-get install -y chromium"
    count, asked = search(site, "fairness")
    assert count >= 2 and asked == []


def test_a_broken_site_is_caught(tmp_path: Path) -> None:
    """Each check sees a breach, beside a page that is right."""
    (tmp_path / "a.html").write_text('<h2 id="x">x</h2><a href="a.html#x">fine</a><p>fine - so</p>', encoding="utf-8")
    (tmp_path / "b.html").write_text(
        '<a href="a.html#y">1</a><a href="c.html">2</a><img src="https://example.org/i.png"><p>as follows:\n- one\n- two</p>',
        encoding="utf-8",
    )
    found = pages(tmp_path)
    assert list(dead_links(tmp_path, found)) == ["b.html: a.html#y (no such anchor)", "b.html: c.html"]
    assert list(loads_from_the_network(tmp_path, found)) == ["b.html: loads https://example.org/i.png"]
    assert list(text_that_was_to_be_a_list(tmp_path, found)) == ["b.html: - one", "b.html: - two"]


@pytest.mark.parametrize(
    ("text", "repo", "expected"),
    [
        ("[moe](../../src/rorqual/ops/moe.py)", None, "moe (`src/rorqual/ops/moe.py`)"),
        ("[`src/rorqual/ops/moe.py`](../../src/rorqual/ops/moe.py)", None, "`src/rorqual/ops/moe.py`"),
        ("[moe](../../src/rorqual/ops/moe.py#L3)", "https://h/r/", "[moe](https://h/r/blob/main/src/rorqual/ops/moe.py#L3)"),
        ("[serve](serve.md#keys)", "https://h/r", "[serve](serve.md#keys)"),
        ("[log](../LOG.md) and [paper](https://arxiv.org/abs/1)", "https://h/r", "[log](../LOG.md) and [paper](https://arxiv.org/abs/1)"),
        ("```\n[a](../../src/a.py)\n```", None, "```\n[a](../../src/a.py)\n```"),
    ],
)  # fmt: skip
def test_links_to_the_source(text: str, repo: str | None, expected: str) -> None:
    assert hooks.with_source_links(text, "how-to/page.md", repo) == expected


def test_links_of_pages_lead_to_files_of_the_repository() -> None:
    """Those outside docs, which the site shows as paths or as addresses of the repository."""
    for path in DOCS.rglob("*.md"):
        for _, target in hooks.LINK.findall(hooks.FENCE.sub("", path.read_text(encoding="utf-8"))):
            if not re.match(r"[a-z]+:|#", target):
                assert (path.parent / target.partition("#")[0]).exists(), f"{path.name}: {target}"


def test_the_diagrams_show_the_page() -> None:
    """`python scripts/diagrams.py` writes them."""
    drawn = diagrams.pictures((ROOT / diagrams.PAGE).read_text(encoding="utf-8"))
    for name, text in drawn.items():
        assert (ROOT / diagrams.FOLDER / name).read_text(encoding="utf-8") == text, name


def test_the_page_of_results_names_every_result_file() -> None:
    page = (DOCS / "LOG.md").read_text(encoding="utf-8")
    files = [path.relative_to(DOCS).as_posix() for path in (DOCS / "results").rglob("*.json")]
    assert files and not [name for name in files if f"({name})" not in page]
