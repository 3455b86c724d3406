"""Tables that pdflatex takes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

ALONE = r"""% pdflatex compiles this file by itself; a paper takes the table alone with \input.
\makeatletter
\ifx\@nodocument\relax\def\wmend{}\else\documentclass{article}\def\wmend{\end{document}}\fi
\makeatother
\ifx\wmend\empty\else\begin{document}\fi"""
# LaTeX sets \@nodocument to \relax once a document has begun.


def latex_table(names: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str) -> str:
    """A table that is a document of its own and, taken in by a paper, only the table."""
    lines = [" & ".join(map(latex, row)) + r" \\" for row in (names, *rows)]
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
            rf"\caption{{{latex(caption)}}}",
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


def latex(text: str) -> str:
    """Text that LaTeX prints as it is; what is not ASCII loses its accents, or becomes a question mark."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    plain = plain.encode("ascii", "replace").decode()
    return "".join(ESCAPES.get(c, c) for c in plain if c.isprintable())
