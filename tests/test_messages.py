"""Messages of exceptions avoid the left column of the glossary in CONTRIBUTING.md, each row of it."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("wm_envs", "policies", "wm_agents")
AVOIDED = {
    "told, tells, says of": r"\btold\b|\btells?\b|\bsays? of\b",
    "what comes, what really comes, what came": r"\bwhat (really )?(comes|came)\b",
    "how far the dream is what comes": r"\bhow far\b",
    "for real": r"\bfor real\b(?! (action|env|environment|episode|frame|image|return|score|step)s?\b)",
    "held against, hold against": r"\b(held|holds?)\b.*\bagainst\b",
    "goes on, go on (of a run)": r"\b(goes|go|going|went) on\b",
    "begins anew, begin anew": r"\banew\b|\bafresh\b",
    "vectors that tell all": r"\btells? all\b",
    "what needs a memory": r"\bneeds? a memory\b",
    "choices (of actions)": r"\bchoices?\b",
    "numbers (of actions)": r"\b(actions|models?) of numbers\b|\bnumbers as actions\b",
    "a training, trainings": r"\btrainings\b|\b(a|the) training\b(?! (batch|checkpoint|data|episode|run|stage|step))",
    "judge, judging, verdict": r"\bjudg(e|es|ed|ing|ement)\b|\bverdict",
    "95 % of the mean": r"95 % of the mean",
    "beside it (as a table head)": r"\bbeside it\b",
    "an end, ends (of a dream)": r"\ban end\b|\b(dream|episode|row)s? ends?\b",
    "cut, is cut (of an episode)": r"\b(is|are|was|were|be) cut\b",
    "can be dreamed in, cannot be dreamed": r"\bdreamed in\b|\bbe dreamed\b",
    "starts, a bank of starts": r"\bbanks?\b|\b(no|of|the) starts\b",
    "leave, leaves (of noise)": r"\bleaves\b|\bleav(e|ing) the policy\b",
    "stall": r"\bstall(s|ed|ing)?\b",
    "V, M, C (outside V-M-C)": r"\b[VM]\b(?!-)(?<!V-M)|\bC\b(?<!V-M-C)(?<!, C)(?!,| =)",
    "is refused, refuses": r"\brefus(e|es|ed|al|ing)\b",
    "sees, is seen, eyes": r"\bsees\b|\bseen\b|\beyes?\b",
    "film, films": r"\bfilm(s|ed|ing)?\b",
    "picture, pictures": r"\bpictures?\b",
    "foresee, foreseen": r"\bfores(ee|een|aw)\b|\bforetell",
    "promise, promises (of a dream)": r"\bpromis(e|es|ed)\b",
    "earn, earns": r"\bearn(s|ed|ing)?\b",
    "on record": r"\bon record\b",
    "by itself, of its own": r"\bby itself\b|\bby themselves\b|\bof (its|their|his) own\b",
    "so many steps": r"\bso (many|much|long)\b",
    "is no X, are no X": r"(?<!there )\b(is|are|was|were) no (?!longer|more|less)\w+",
    "as far as which, of which, in which (chained)": r"\bas far as which\b|\bof which of\b",
}
"""A pattern for each row of the glossary."""

Definition = ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


class Messages:
    """The texts that can become part of a message: `texts` maps each to the place where it stands.

    It follows every `raise` and `assert` to the local variables, constants, functions and classes that build its
    message, and to the arguments of every caller if the message contains a parameter.
    """

    def __init__(self, trees: dict[str, ast.Module]) -> None:
        self.texts: dict[str, str] = {}
        self.raises = 0
        self._defined: dict[str, list[tuple[str, Definition]]] = defaultdict(list)
        self._calls: dict[str, list[tuple[str, ast.Call]]] = defaultdict(list)
        self._done: set[int] = set()
        self._todo: list[tuple[str, ast.AST, ast.FunctionDef | None]] = []
        for place, tree in trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    self._defined[node.name].append((place, node))
                elif isinstance(node, ast.Call):
                    self._calls[_name(node.func)].append((place, node))
            for name, node in _assigned(tree.body):
                self._defined[name].append((place, node))
        for place, tree in trees.items():
            for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
                self._read_raises(place, function)
        while self._todo:
            self._visit(*self._todo.pop())

    def _read_raises(self, place: str, function: ast.FunctionDef) -> None:
        for node in ast.walk(function):
            message = node.exc if isinstance(node, ast.Raise) else node.msg if isinstance(node, ast.Assert) else None
            if message is not None:
                self.raises += 1
                self._read(place, message, function)

    def _read(self, place: str, expression: ast.AST, function: ast.FunctionDef | None) -> None:
        """Read an expression in `function` once."""
        if id(expression) not in self._done:
            self._done.add(id(expression))
            self._todo.append((place, expression, function))

    def _visit(self, place: str, expression: ast.AST, function: ast.FunctionDef | None) -> None:
        """Keep the texts of an expression in `function`, and follow its names and calls."""
        for line, text in _texts(expression):
            self.texts.setdefault(text, f"{place}:{line}")
        local = dict(_local(function)) if function else {}
        parameters = {arg.arg for arg in ast.walk(function.args) if isinstance(arg, ast.arg)} if function else set()
        for node in ast.walk(expression):
            name = _name(node)
            if function and isinstance(node, ast.Name) and name in parameters - {"self", "cls"}:
                for caller, call in self._calls[function.name]:
                    for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
                        self._read(caller, argument, None)
            for value in local.get(name, []):
                self._read(place, value, function)
            if isinstance(node, ast.Name | ast.Attribute):
                for where, definition in self._defined.get(name, []):
                    self._read_definition(where, definition)

    def _read_definition(self, place: str, definition: Definition) -> None:
        if id(definition) in self._done:
            return
        self._done.add(id(definition))
        if isinstance(definition, ast.FunctionDef):
            for node in ast.walk(definition):
                if isinstance(node, ast.Return | ast.Yield) and node.value:
                    self._read(place, node.value, definition)
        elif isinstance(definition, ast.ClassDef):
            for method in definition.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    self._read(place, method, method)
        elif definition.value is not None:
            self._read(place, definition.value, None)


def _name(node: ast.AST) -> str:
    return getattr(node, "id", None) or getattr(node, "attr", "")


def _assigned(body: Iterable[ast.AST]) -> Iterator[tuple[str, ast.Assign | ast.AnnAssign]]:
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((_name(name), node) for target in targets for name in ast.walk(target) if _name(name))


def _local(function: ast.FunctionDef) -> dict[str, list[ast.AST]]:
    """The values that the variables of a function may have: assigned, appended, or looped over."""
    values: dict[str, list[ast.AST]] = defaultdict(list)
    for name, node in _assigned(ast.walk(function)):
        values[name].append(node.value or node)
    for node in ast.walk(function):
        if isinstance(node, ast.For | ast.comprehension):
            for name in ast.walk(node.target):
                values[_name(name)].append(node.iter)
        elif isinstance(node, ast.AugAssign | ast.NamedExpr):
            values[_name(node.target)].append(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append":
            values[_name(node.func.value)] += node.args
    return values


def _texts(expression: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, text) of the string literals in an expression; the fields of an f-string become X."""
    for node in ast.walk(expression):
        if isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


def found(text: str) -> list[str]:
    """The words of a message that the glossary avoids, outside code in backticks."""
    plain = " ".join(re.sub(r"`[^`]*`", "X", text).split())
    return [match[0] for pattern in AVOIDED.values() if (match := re.search(pattern, plain))]


def test_every_row_of_the_glossary_has_a_pattern() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("| avoid | write |")[2]
    rows = re.findall(r"^\| (.+?) \| .+ \|$", table, re.MULTILINE)
    assert list(AVOIDED) == rows


@pytest.mark.parametrize(
    "source",
    [
        "def f(x):\n    raise ValueError(f'{x} is refused')",
        "def f(x):\n    why = 'it is refused'\n    raise ValueError(why)",
        "def f(x):\n    why = []\n    why.append('it is refused')\n    raise ValueError(f'{x}: {why}')",
        "WHY = {1: 'it is refused'}\ndef f(x):\n    raise ValueError(WHY[x])",
        "def g(x):\n    return f'{x} is refused'\ndef f(x):\n    raise ValueError(g(x))",
        "def f(x):\n    raise ValueError(x)\ndef g():\n    f('it is refused')",
        "class E(Exception):\n    def __init__(self):\n        super().__init__('it is refused')\ndef f():\n raise E",
        "def f(x):\n    assert x, 'it is refused'",
    ],
)
def test_messages_are_found_wherever_they_are_built(source: str) -> None:
    assert any(found(text) for text in Messages({"a.py": ast.parse(source)}).texts)


def test_other_texts_are_not_messages() -> None:
    source = "def f(x):\n    print('it is refused')\n    raise ValueError(f'{x} is missing')"
    assert list(Messages({"a.py": ast.parse(source)}).texts) == ["X is missing", " is missing"]


def test_messages_of_the_packages_use_the_words_of_the_field() -> None:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    said = Messages({str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in files})
    assert said.raises > 400 and len(said.texts) > 700  # The walk misses nothing because of a change of style.
    wrong = [f"{place}: {', '.join(words)}: {text!r}" for text, place in said.texts.items() if (words := found(text))]
    assert not wrong, "\n".join(["the glossary in CONTRIBUTING.md avoids words of these messages:", *wrong])
