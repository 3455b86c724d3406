"""Plain words: documentation and messages avoid the left column of the glossary in CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOG = ROOT / "docs" / "log.md"
PAGES = sorted(
    {ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("wm_agents/store/*/*.md")}
    - {LOG}  # Its old entries stay as they are.
)
CODE = [
    path for folder in ("wm_envs", "policies", "wm_agents", "scripts") for path in sorted((ROOT / folder).rglob("*.py"))
]
PHRASES = [
    r"\bfor real\b(?! (action|env|episode|frame|image|return|score|step)s?)",
    r"\bheld? (it |them |a model |the model )?against\b",
    r"what (really )?(comes|came)\b",
    r"\b(is|are|was|were|as) told\b",
    r"\btell(s)? all\b",
    r"\btells? (of|once)\b",
    r"\bsays? of\b",
    r"\b(goes?|going|went) on (from|where|as|again|after|to|with|by|if|until|for)\b|\bgoes on\b",
    r"\bafresh\b|\banew\b",
    r"\btrainings\b|\ba training\b(?! (batch|checkpoint|data|episode|loop|run|seed|set|stage|step|window))",
    r"\bjudge[ds]?\b(?!/)|\bjudging\b|\bverdict",
    r"95 % of the mean",
    r"\| beside it \|",
    r"\bneeds a memory\b",
    r"\bdreamed in\b",
    r"\b(cannot|can|could) be dreamed\b",
    r"\bforeseen?\b|\bforetell",
    r"\bfilm(s|ed|ing)?\b",
    r"\bby itself\b|\bby themselves\b",
    r"\b(after|by|within) so (many|much|long)\b|\bso many (steps|times|rows)\b",
    r"(?<!there )\b(is|are|was) no (?!longer|more|less|better|limit|need|error)\w+",
    r"\bas far as which\b|\bof which of\b",
    r"\bon record\b",
    r"\bgive(s)? back\b|\bgiven back\b",
    r"\bpromised and earned\b",
]


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(first line, text) of every paragraph of a page, without code; of every string literal of a module."""
    if path.suffix == ".md":
        page = re.sub(r"^```.*?^```", lambda code: "\n" * code[0].count("\n"), path.read_text(), flags=re.M | re.S)
        for paragraph in re.finditer(r"^[^\n]+(\n(?![*|-] |\d+\.|\n)[^\n]+)*", page, re.MULTILINE):
            yield page.count("\n", 0, paragraph.start()) + 1, paragraph[0]
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def avoided(text: str) -> list[str]:
    """The phrases in `text` that the glossary avoids."""
    plain = " ".join(re.sub(r"`[^`]*`", "X", text).split())
    return [found[0] for phrase in PHRASES for found in [re.search(phrase, plain, re.IGNORECASE)] if found]


@pytest.mark.parametrize("path", [*PAGES, *CODE], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_words_are_plain(path: Path) -> None:
    wrong = [f"{line}: {', '.join(found)}" for line, text in texts(path) if (found := avoided(text))]
    assert not wrong, f"{path.relative_to(ROOT)}: the glossary in CONTRIBUTING.md avoids {wrong}"


@pytest.mark.parametrize(
    "text",
    [
        "The model is held against reality",
        "what really comes",
        "The same command goes on from what was done",
        "vectors that tell all",
        "as far as which they count",
        "± 22 (95 % of the mean)",
        "this is no model",
    ],
)
def test_private_words_are_found(text: str) -> None:
    assert avoided(text)


def test_terms_of_the_field_pass() -> None:
    assert not avoided("resumes; the real environment; `goes on`; there is no file; the training run; discrete actions")
