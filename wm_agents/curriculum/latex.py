"""LaTeX tables."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

ALONE = r"""% This file compiles alone with pdflatex; a paper can include only the table with \input.
\makeatletter
\ifx\@nodocument\relax\def\wmend{}\else\documentclass{article}\def\wmend{\end{document}}\fi
\makeatother
\ifx\wmend\empty\else\begin{document}\fi"""
# LaTeX sets \@nodocument to \relax once a document has begun.


def latex_table(names: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str) -> str:
    """A table that compiles as a document and can be included in a paper with \\input."""
    lines = [" & ".join(map(_latex, row)) + r" \\" for row in (names, *rows)]
    return "\n".join(
        [
            ALONE,
            r"\begin{table}[htbp]",
            r"\centering",
            rf"\begin{{tabular}}{{{'l' * len(names)}}}",
            r"\hline",
            lines[0],
            r"\hline",
            *lines[1:],
            r"\hline",
            r"\end{tabular}",
            rf"\caption{{{_latex(caption)}}}",
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9.-]', '-', label)}}}",
            r"\end{table}",
            r"\wmend",
            "",
        ]
    )


ESCAPES = {c: rf"\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def _latex(text: str) -> str:
    """Escape text for LaTeX; non-ASCII characters lose their accents or become question marks."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    plain = plain.encode("ascii", "replace").decode()
    return "".join(ESCAPES.get(c, c) for c in plain if c.isprintable())
