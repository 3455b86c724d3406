"""Where the fields of config dataclasses are read: types are followed through the source, as far as annotations go.

A read is `x.field` in code that runs, where `x` is of the config's type: a parameter or attribute annotated with it,
the result of a constructor or an annotated function, a field of another config. A value of a protocol, or of a type
variable bound to it, may be any config that has the fields of the protocol. Where the type cannot be followed, a
variable called `cfg` in the config's own module counts as one. Checks of a config's own values are no reads.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGES = ("wm_envs", "policies", "wm_agents")
CHECKS = re.compile(r"__post_init__|_?check(_\w+)?")
Types = dict[str, str]


class Class(NamedTuple):
    """What is known of a class: the types of its attributes and of what its methods return."""

    module: str
    node: ast.ClassDef
    bases: list[str]
    attrs: Types
    is_config: bool


class Source:
    """All modules of the packages, or of `texts` (name -> source)."""

    def __init__(self, texts: dict[str, str] | None = None) -> None:
        if texts is None:
            files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
            texts = {str(file.relative_to(ROOT)): file.read_text() for file in files}
        self.trees = {name: ast.parse(text) for name, text in texts.items()}
        self.classes: dict[str, Class] = {}
        self.returns: Types = {}
        self.bounds: Types = {}
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    self.classes[node.name] = _class(module, node)
                elif isinstance(node, ast.FunctionDef) and node.returns is not None:
                    self.returns.setdefault(node.name, _name(node.returns))
            self.bounds |= _bounds(tree)
        for cls in self.classes.values():  # Attributes that __init__ sets from its parameters.
            for function in (n for n in cls.node.body if isinstance(n, ast.FunctionDef)):
                env = self.scope(function, cls.node.name)
                for node in ast.walk(function):
                    if isinstance(node, ast.Assign):
                        for part, value in (pair for target in node.targets for pair in _pairs(target, node.value)):
                            kind = self.type_of(value, env)
                            if kind and isinstance(part, ast.Attribute) and ast.unparse(part.value) == "self":
                                cls.attrs.setdefault(part.attr, kind)

    def configs(self) -> dict[str, list[str]]:
        """Fields by class, of every dataclass that settings are told in."""
        return {name: _fields(cls.node) for name, cls in self.classes.items() if cls.is_config}

    def reads(self) -> set[tuple[str, str]]:
        """(config, field) of everything that is read."""
        found: set[tuple[str, str]] = set()
        for module, tree in self.trees.items():
            for function, owner in _functions(tree):
                own = self.classes[owner].is_config if owner in self.classes else False
                if own and CHECKS.fullmatch(function.name):
                    continue
                env = self.scope(function, owner)
                for node in ast.walk(function):
                    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                        kind = self.type_of(node.value, env)
                        for config in self._meant(kind, node, module):
                            found.add((config, node.attr))
        return found

    def _meant(self, kind: str, node: ast.Attribute, module: str) -> Iterator[str]:
        kind = self.bounds.get(kind, kind)
        if kind in self.classes and "Protocol" in self.classes[kind].bases:
            needed = self.classes[kind].attrs.keys() - {"__dataclass_fields__"}
            yield from (name for name, own in self.configs().items() if needed <= set(own))
        elif kind in self.classes:
            yield from (name for name in self._line(kind) if self.classes[name].is_config)
        elif ast.unparse(node.value).split(".")[-1] in ("cfg", "c"):
            yield from (name for name, cls in self.classes.items() if cls.is_config and cls.module == module)

    def _line(self, name: str) -> Iterator[str]:
        """A class and its bases."""
        if name in self.classes:
            yield name
            for base in self.classes[name].bases:
                yield from self._line(base)

    def scope(self, function: ast.FunctionDef, owner: str) -> Types:
        """Types of parameters and of what is assigned, in the order it is."""
        args = function.args
        env = {a.arg: _name(a.annotation) for a in (*args.args, *args.kwonlyargs) if a.annotation}
        if owner:
            env |= {"self": owner, "cls": owner}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    for part, value in _pairs(target, node.value):
                        if isinstance(part, ast.Name) and (kind := self.type_of(value, env)):
                            env[part.id] = kind
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                env[node.target.id] = _name(node.annotation)
            elif isinstance(node, ast.With):
                for item in node.items:
                    if isinstance(item.optional_vars, ast.Name):
                        env[item.optional_vars.id] = self.type_of(item.context_expr, env)
        return env

    def type_of(self, node: ast.expr, env: Types) -> str:
        """The name of an expression's class; empty where it cannot be followed."""
        if isinstance(node, ast.Name):
            return env.get(node.id, "")
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value, env)
            return next(
                (self.classes[c].attrs[node.attr] for c in self._line(owner) if node.attr in self.classes[c].attrs), ""
            )
        if isinstance(node, ast.IfExp | ast.BoolOp):
            parts = [node.body, node.orelse] if isinstance(node, ast.IfExp) else node.values
            return next(filter(None, (self.type_of(part, env) for part in parts)), "")
        if isinstance(node, ast.Call):
            called = node.func
            name = (
                called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
            )
            if name in self.classes:
                return name
            if name == "replace":
                inner = node.args[0] if isinstance(called, ast.Name) else called.value  # type: ignore[union-attr]
                return self.type_of(inner, env)
            kind = self.returns.get(name, "")
            return self.type_of(called.value, env) if kind == "Self" and isinstance(called, ast.Attribute) else kind
        return ""


def unread(source: Source) -> list[str]:
    """`Config.field` of every field that no code reads."""
    reads = source.reads()
    return [
        f"{name}.{field}"
        for name, own in source.configs().items()
        for field in own
        if not any((kind, field) in reads for kind in source.classes if name in source._line(kind))
    ]


def _class(module: str, node: ast.ClassDef) -> Class:
    attrs = {
        n.target.id: _name(n.annotation)
        for n in node.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    for n in node.body:
        if isinstance(n, ast.FunctionDef) and n.returns and any(ast.unparse(d) == "property" for d in n.decorator_list):
            attrs[n.name] = _name(n.returns)
    frozen = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
    settings = node.name.endswith(("Config", "Section", "Spec"))
    return Class(module, node, [ast.unparse(b) for b in node.bases], attrs, frozen and settings)


def _fields(node: ast.ClassDef) -> list[str]:
    rows = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return [n.target.id for n in rows if "ClassVar" not in ast.unparse(n.annotation)]  # type: ignore[union-attr]


def _bounds(tree: ast.Module) -> Types:
    """The bounds of the type variables of a module."""
    found = {}
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and ast.unparse(node.value.func) == "TypeVar"
        ):
            bound = [_name(word.value) for word in node.value.keywords if word.arg == "bound"]
            found |= {ast.unparse(node.targets[0]): name for name in bound}
    return found


def _functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, str]]:
    """Functions and methods with the class they are in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from ((n, node.name) for n in node.body if isinstance(n, ast.FunctionDef))
    yield from ((n, "") for n in tree.body if isinstance(n, ast.FunctionDef))


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        yield from zip(target.elts, value.elts)
    else:
        yield target, value


def _name(node: ast.expr) -> str:
    """The class in an annotation: `Foo`, `a.Foo`, "Foo", `Foo | None`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _name(ast.parse(node.value, mode="eval").body)
    if isinstance(node, ast.BinOp):
        return next(filter(None, (_name(node.left), _name(node.right))), "")
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) and node.id != "None" else ""
