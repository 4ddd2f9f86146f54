"""Which settings a program reads, by the type of what it reads them from."""

import ast
from collections.abc import Iterable
from dataclasses import fields
from typing import Optional

from megatron_aia.config import Config

GROUPS = {group.type.__name__ for group in fields(Config)}  # type: ignore[union-attr]


class ConfigReads(ast.NodeVisitor):
    """Follows annotations and assignments to every ``<group>.<field>`` that is read.

    An attribute of the same name of anything else, as ``index.folder``, is no read of a setting.

    Attributes:
        found: pairs of the group's class and the field, properties of the groups included.
    """

    def __init__(self) -> None:
        self.found: set[tuple[str, str]] = set()
        self._members: dict[str, dict[str, str]] = {}
        self._returns: dict[str, str] = {}
        self._scopes: list[dict[str, str]] = [{}]
        self._class = ""

    def read(self, trees: Iterable[ast.Module]) -> "ConfigReads":
        """Visit modules twice: what a class holds is known when its users are visited again."""
        trees = list(trees)
        for tree in trees * 2:
            self.visit(tree)
        return self

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self._class = self._class, node.name
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                self._hold(node.name, part.target.id, annotated(part.annotation))
        self.generic_visit(node)
        self._class = outer

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        returned = annotated(node.returns)
        if returned and any(getattr(d, "id", "") == "property" for d in node.decorator_list):
            self._hold(self._class, node.name, returned)
        elif returned:
            self._returns[node.name] = returned
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        names = {argument.arg: annotated(argument.annotation) for argument in arguments}
        if self._class and arguments and arguments[0].arg == "self":
            names["self"] = self._class
        self._scopes.append({name: kind for name, kind in names.items() if kind})
        self.generic_visit(node)
        self._scopes.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._assign(target, node.value)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        kind = self._type(node.value)
        if isinstance(node.ctx, ast.Load) and kind in GROUPS:
            self.found.add((kind, node.attr))

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for part, its_value in zip(target.elts, value.elts, strict=True):
                self._assign(part, its_value)
        kind = self._type(value)
        if kind and isinstance(target, ast.Name):
            self._scopes[-1][target.id] = kind
        elif kind and isinstance(target, ast.Attribute):
            self._hold(self._type(target.value), target.attr, kind)

    def _type(self, node: ast.expr) -> Optional[str]:
        if isinstance(node, ast.Name):
            return next((s[node.id] for s in reversed(self._scopes) if node.id in s), None)
        if isinstance(node, ast.Attribute):
            return self._members.get(self._type(node.value) or "", {}).get(node.attr)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "replace" and node.args:
                return self._type(node.args[0])
            return self._returns.get(node.func.id)
        return None

    def _hold(self, owner: Optional[str], attribute: str, kind: Optional[str]) -> None:
        if owner and kind:
            self._members.setdefault(owner, {})[attribute] = kind


def annotated(annotation: Optional[ast.expr]) -> Optional[str]:
    """Return the class that an annotation names, plainly, in quotes or as Optional."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.Subscript) and getattr(annotation.value, "id", "") == "Optional":
        annotation = annotation.slice
    if isinstance(annotation, ast.BinOp):
        annotation = annotation.left
    return annotation.id if isinstance(annotation, ast.Name) else None
