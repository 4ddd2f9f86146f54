"""Which settings a program reads, by the type of what it reads them from."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Optional

Setting = tuple[str, str]
"""The class of a group, and a field or a property of it."""

ROOT = "Config"
"""The class whose fields are the groups."""


class ConfigReads(ast.NodeVisitor):
    """Follows annotations and assignments to every ``<group>.<field>`` that is read.

    An attribute of the same name of anything else, as ``index.folder``, is no read of a setting.

    Args:
        program: modules, and whether their reads count. What a group itself reads counts where
            something else uses the property that reads it.
    """

    def __init__(self, program: Mapping[ast.Module, bool]) -> None:
        self._members: dict[str, dict[str, str]] = defaultdict(dict)
        self._bases: dict[str, list[str]] = {}
        self._returns: dict[str, str] = {}
        self._fields: dict[str, list[str]] = {}
        self._scopes: list[dict[str, str]] = [{}]
        self._class = self._function = ""
        self._counts = False
        self._reads: dict[Setting, set[Setting]] = defaultdict(set)
        # What a class holds is known when its users are visited again.
        for tree, self._counts in [*program.items()] * 2:
            self.visit(tree)

    def unread(self) -> list[str]:
        """Return ``<class>.<field>`` of the settings that nothing reads."""
        groups = set(self._members[ROOT].values())
        groups |= {name for name in self._fields if groups & set(self._line_of(name))}
        read, waiting = set(), [("", "")]
        while waiting:
            found = {same for s in self._reads[waiting.pop()] for same in self._as_related(s)}
            waiting += found - read
            read |= found
        settings = {(name, field) for name in groups for field in self._fields[name]}
        return sorted(f"{group}.{field}" for group, field in settings - read)

    def _as_related(self, setting: Setting) -> Iterator[Setting]:
        """Yield a setting under every class that has it: of a parent, and of a child."""
        for name in self._fields:
            if name in self._line_of(setting[0]) or setting[0] in self._line_of(name):
                yield name, setting[1]

    def _line_of(self, name: str) -> list[str]:
        return [name, *(a for base in self._bases.get(name, []) for a in self._line_of(base))]

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer, self._class = self._class, node.name
        self._bases[node.name] = [b.id for b in node.bases if isinstance(b, ast.Name)]
        declared = [part for part in node.body if isinstance(part, ast.AnnAssign)]
        names = {p.target.id: p.annotation for p in declared if isinstance(p.target, ast.Name)}
        self._fields[node.name] = list(names)
        for name, annotation in names.items():
            self._hold(node.name, name, class_in(annotation))
        self.generic_visit(node)
        self._class = outer

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        returned = class_in(node.returns)
        if returned and "property" in [getattr(d, "id", "") for d in node.decorator_list]:
            self._hold(self._class, node.name, returned)
        elif returned:  # two functions of one name that return different things tell nothing
            same = self._returns.setdefault(node.name, returned) == returned
            self._returns[node.name] = returned if same else ""
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        names = {argument.arg: class_in(argument.annotation) for argument in arguments}
        if self._class and "self" in names:
            names["self"] = self._class
        outer, self._function = self._function, self._function or node.name
        self._scopes.append({name: kind for name, kind in names.items() if kind})
        self.generic_visit(node)
        self._scopes.pop()
        self._function = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._assign(target, node.value)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        kind = self._type(node.value)
        if kind and isinstance(node.ctx, ast.Load):
            inside = "self" in self._scopes[-1] and self._class in self._line_of(kind)
            if inside:
                self._reads[self._class, self._function].add((kind, node.attr))
            elif self._counts:
                self._reads["", ""].add((kind, node.attr))

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
        """Return the class of an expression, where the annotations tell it."""
        if isinstance(node, ast.Name):
            return next((s[node.id] for s in reversed(self._scopes) if node.id in s), None)
        if isinstance(node, ast.Attribute):
            line = [self._members[name] for name in self._line_of(self._type(node.value) or "")]
            return next((held[node.attr] for held in line if node.attr in held), None)
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name == "replace" and node.args:
                return self._type(node.args[0])
            return name if name in self._fields else self._returns.get(name)
        return None

    def _hold(self, owner: Optional[str], attribute: str, kind: Optional[str]) -> None:
        if owner and kind:
            self._members[owner][attribute] = kind


def class_in(annotation: Optional[ast.expr]) -> Optional[str]:
    """Return the class that an annotation names, plainly, in quotes or as Optional."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return class_in(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.Subscript) and getattr(annotation.value, "id", "") == "Optional":
        return class_in(annotation.slice)
    if isinstance(annotation, ast.BinOp):
        return class_in(annotation.left)
    return annotation.id if isinstance(annotation, ast.Name) else None
