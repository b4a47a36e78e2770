"""Building blocks of self-contained HTML pages, with inline style and pictures, without scripts or network requests."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

from rorqual.evals.pictures import DARK, LIGHT, Picture

COLOURS = (
    f":root{{color-scheme:light dark;--ground:{LIGHT.ground};--ink:{LIGHT.ink};--faint:#62676e;--rule:#dcd9d0;"
    f"--soft:#f3f1ea;--accent:{LIGHT.after};--good:#1f7a55;--bad:#a4551a}}\n"
    f"@media (prefers-color-scheme:dark){{:root{{--ground:{DARK.ground};--ink:{DARK.ink};--faint:#9a9fa6;--rule:#33373d;"
    f"--soft:#1e2125;--accent:{DARK.after};--good:#62c79c;--bad:#e2a14e}}}}"
)
STYLE = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);
font:1.0625rem/1.6 "Iowan Old Style","Palatino Linotype",Palatino,"URW Palladio L",Charter,Georgia,serif}
main{max-width:62rem;margin:0 auto;padding:3.5rem 1.25rem 6rem}
header{border-bottom:1px solid var(--rule);padding-bottom:1.5rem;margin-bottom:2rem}
h1{font-size:2.1rem;line-height:1.15;font-weight:600;letter-spacing:-.012em;margin:0 0 .6rem;text-wrap:balance}
h2{font-size:1.4rem;line-height:1.25;font-weight:600;margin:3.25rem 0 .7rem;text-wrap:balance}
h3{font-size:1.05rem;font-weight:600;margin:1.8rem 0 .4rem}
p{margin:.7rem 0;max-width:42rem;hyphens:auto;text-wrap:pretty}
p.lede{font-size:1.16rem;line-height:1.55}
p.note,figcaption,.meta{color:var(--faint);font-size:.92rem;line-height:1.5}
nav{font-size:.92rem;margin-top:1.1rem;color:var(--faint)}
nav a{display:inline-block;margin-right:1.1em;white-space:nowrap}
a{color:var(--accent);text-underline-offset:.16em;text-decoration-thickness:1px}
code,pre,kbd{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86em}
pre{background:var(--soft);padding:.8rem 1rem;margin:.6rem 0;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.5;
border-radius:3px}
figure{margin:1.6rem 0 2rem}
figcaption{margin-top:.5rem;max-width:42rem}
.wide{overflow-x:auto;margin:1.1rem 0}
.wide:focus-visible{outline:2px solid var(--accent);outline-offset:3px}
img{display:block;width:100%;min-width:34rem;height:auto}
table{border-collapse:collapse;width:100%;line-height:1.35;
font:0.83rem/1.35 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",sans-serif;
font-variant-numeric:tabular-nums lining-nums}
caption{text-align:left;color:var(--faint);padding-bottom:.5rem;caption-side:top}
th,td{padding:.36rem .75rem .36rem 0;text-align:right;vertical-align:baseline;white-space:nowrap}
th:last-child,td:last-child{padding-right:0}
thead th{white-space:normal;font-weight:500;color:var(--faint);border-bottom:1px solid var(--ink);vertical-align:bottom}
tbody tr+tr>*{border-top:1px solid var(--rule)}
tbody:last-child tr:last-child>*{border-bottom:1px solid var(--ink)}
th[scope=row],th.text,td.text{text-align:left;font-weight:400}
td.prose,th.prose{white-space:normal;min-width:13rem}
.v{white-space:nowrap}.v-yes{color:var(--good);font-weight:600}.v-no{color:var(--bad);font-weight:600}.v-open{color:var(--faint)}
details{border-top:1px solid var(--rule);padding:.55rem 0}
details:last-of-type{border-bottom:1px solid var(--rule)}
summary{cursor:pointer}
details details,details details:last-of-type{border:0;padding:.1rem 0 .3rem}
details details summary{color:var(--faint);font-size:.92rem}
.thought{color:var(--faint)}
dl.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));gap:1.1rem 1.5rem;margin:1.4rem 0}
dl.facts div{border-top:1px solid var(--rule);padding-top:.45rem}
dl.facts dt{color:var(--faint);font-size:.88rem;line-height:1.35}
dl.facts dd{margin:.1rem 0 0;font-size:1.3rem;line-height:1.3;font-variant-numeric:lining-nums tabular-nums}
dl.facts small{display:block;font-size:.8rem;color:var(--faint)}
dl.talk{margin:.5rem 0 .8rem}dl.talk dt{color:var(--faint);font-size:.88rem;margin-top:.5rem}dl.talk dd{margin:0}
@media (max-width:36rem){body{font-size:1rem}main{padding:2rem 1rem 4rem}h1{font-size:1.65rem}h2{margin-top:2.5rem}}
@media print{details>*{display:block}nav{display:none}main{max-width:none;padding:0}}
""".strip()


class Html(str):
    """Text that is already HTML and is not escaped again."""


def page(title: str, body: str, style: str = "") -> str:
    """Return the HTML document. `style` is appended to the default style. The empty icon stops browsers from requesting a favicon."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<style>\n{COLOURS}\n{STYLE}\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(name: str, title: str, *parts: str) -> str:
    """Return an HTML section with the anchor `#name`."""
    return f'<section id="{escape(name)}">\n<h2>{escape(title)}</h2>\n' + "\n".join(parts) + "\n</section>"


def para(text: str, kind: str = "") -> str:
    """Return an HTML paragraph with the escaped `text`."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def figure(picture: Picture, light: bytes, dark: bytes) -> str:
    """Return an inline picture that follows the reader's colour scheme."""
    day, night = (base64.b64encode(data).decode("ascii") for data in (light, dark))
    return (
        f'<figure><div class="wide" tabindex="0" role="region" aria-label="picture: {escape(picture.name)}"><picture>'
        f'<source media="(prefers-color-scheme: dark)" srcset="data:image/png;base64,{night}">'
        f'<img alt="{escape(picture.alt)}" src="data:image/png;base64,{day}"></picture></div>'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def table(
    name: str, heads: Sequence[str], groups: Iterable[tuple[str, Iterable[Sequence[str]]]], *, text_columns: int = 1
) -> str:
    """Return an HTML table. Cells are escaped unless they are `Html`. `groups` are (heading or "", rows)."""
    head = "".join(
        f'<th scope="col"{" class=text" if place < text_columns else ""}>{escape(h)}</th>'
        for place, h in enumerate(heads)
    )
    bodies = []
    for title, rows in groups:
        top = f'<tr><th class="text" colspan="{len(heads)}" scope="rowgroup"><b>{escape(title)}</b></th></tr>'
        lines = ["<tr>" + "".join(_cell(c, i, text_columns) for i, c in enumerate(row)) + "</tr>" for row in rows]
        bodies.append("<tbody>" + (top if title else "") + "\n".join(lines) + "</tbody>")
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="table: {escape(name)}"><table>'
        f"<thead><tr>{head}</tr></thead>\n" + "\n".join(bodies) + "</table></div>"
    )


def _cell(text: str, place: int, text_columns: int) -> str:
    inner = text if isinstance(text, Html) else escape(text)
    long = " prose" if len(text) > 40 and not isinstance(text, Html) else ""
    if place == 0:
        return f'<th scope="row" class="text{long}">{inner}</th>'
    return f'<td class="text{long}">{inner}</td>' if place < text_columns else f"<td>{inner}</td>"


def facts(items: Iterable[tuple[str, str, str]]) -> str:
    """Return a row of key figures as HTML. Each item is (label, figure, small print)."""
    items_html = (
        f"<div><dt>{escape(what)}</dt><dd>{escape(value)}"
        + (f"<small>{escape(small)}</small>" if small else "")
        + "</dd></div>"
        for what, value, small in items
    )
    return f'<dl class="facts">{"".join(items_html)}</dl>'


def folded(summary: str, inner: str, *, is_open: bool = False) -> str:
    """Return a collapsible HTML block with the HTML content `inner`."""
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{inner}</details>"


def preformatted(text: str, kind: str = "") -> str:
    """Return an HTML block of preformatted, escaped text."""
    return f'<pre class="{kind}">{escape(text)}</pre>' if kind else f"<pre>{escape(text)}</pre>"
