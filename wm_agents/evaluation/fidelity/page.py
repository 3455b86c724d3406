"""A self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.figure import Figure

from wm_agents.evaluation.fidelity.sections import Section

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
.summary { font-weight: 600; } .note { color: #555; font-size: .87rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; }
th, td { text-align: right; padding: .2rem .7rem; border-bottom: 1px solid #ddd; vertical-align: bottom; }
th:first-child, td:first-child, .facts td { text-align: left; }
img { max-width: 100%; height: auto; margin: .5rem 0; } .wide { overflow-x: auto; }
"""


def render(title: str, about: str, sections: Sequence[Section], facts: Mapping[str, str]) -> str:
    """The page: title, summary, all sections, and the settings at the end."""
    links = " · ".join(f'<a href="#{s.key}">{escape(s.title)}</a>' for s in sections)
    body = "\n".join(map(_section, sections))
    foot = f'<div class="facts">{_table(["property", "value"], list(facts.items()))}</div>'
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n<p>{escape(about)}</p>\n"
        f'<p class="note">{links}</p>\n{body}\n<h2 id="facts">How this was measured</h2>\n{foot}\n</body>\n</html>\n'
    )


def _section(section: Section) -> str:
    parts = [
        f'<h2 id="{section.key}">{escape(section.title)}</h2>',
        f'<p class="summary">{escape(section.verdict)}</p>',
    ]
    if section.plot is not None:
        parts.append(f'<img alt="{escape(section.title)}, plotted" src="data:image/png;base64,{_png(section.plot)}">')
    if section.rows:
        parts.append(_table(section.head, section.rows))
    if section.note:
        parts.append(f'<p class="note">{escape(section.note)}</p>')
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="wide"><table>\n<tr>{top}</tr>\n{body}</table></div>'


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()
