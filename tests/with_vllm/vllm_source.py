"""The text of a vLLM, installed or in a wheel, asked without importing it."""

from __future__ import annotations

import ast
import textwrap
import zipfile
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Source:
    """A vLLM at `root`: the folder of the package, or that folder in a wheel."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self._modules: dict[str, Module] = {}

    @classmethod
    def installed(cls) -> Source | None:
        """Return the one that Python would import, if any."""
        spec = find_spec("vllm")
        return None if spec is None or spec.origin is None else cls(Path(spec.origin).parent)

    @classmethod
    def at(cls, path: str) -> Source:
        """Return the one in a wheel, or in a folder into which one was unpacked."""
        return cls((zipfile.Path(path) if Path(path).is_file() else Path(path)) / "vllm")

    def __getitem__(self, module: str) -> Module:
        """Return the module "a.b", counted from vllm."""
        if module not in self._modules:
            file = self.root
            for part in module.split("."):
                file = file / part
            package = file / "__init__.py"
            plain = file.parent / f"{file.name}.py"
            self._modules[module] = Module((plain if plain.exists() else package).read_text(encoding="utf-8"))
        return self._modules[module]


class Module:
    """One file."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def _tree(self) -> ast.Module:
        return ast.parse(self.text)

    def find(self, name: str) -> Any:
        """Return the definition "Class", "Class.method" or "function"; the last where there are several."""
        body: list[ast.stmt] = self._tree.body
        found: Definition | None = None
        for part in name.split("."):
            kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            named = [node for node in body if isinstance(node, kinds) and node.name == part]
            assert named, f"{name} is gone"
            found = named[-1]
            body = found.body
        return found

    def has(self, name: str) -> bool:
        """Whether there is such a definition."""
        try:
            self.find(name)
        except AssertionError:
            return False
        return True

    def source(self, name: str) -> str:
        """Return the text of a definition."""
        text = ast.get_source_segment(self.text, self.find(name))
        assert text is not None
        return text

    def parameters(self, name: str) -> list[str]:
        """Return the names of a function's parameters."""
        arguments = self.find(name).args
        return [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]

    def default(self, name: str, parameter: str) -> object:
        """Return the default of a parameter that has one, a literal."""
        arguments = self.find(name).args
        defaults = dict(zip([a.arg for a in arguments.args][::-1], arguments.defaults[::-1], strict=False))
        return ast.literal_eval(defaults[parameter])

    def bases(self, name: str) -> list[str]:
        """Return the bases of a class as written."""
        return [ast.unparse(base) for base in self.find(name).bases]

    def fields(self, name: str) -> dict[str, str]:
        """Return the annotated fields of a class, and their types as written."""
        body = self.find(name).body
        return {ast.unparse(n.target): ast.unparse(n.annotation) for n in body if isinstance(n, ast.AnnAssign)}

    def members(self, name: str) -> set[str]:
        """Return the members of an enumeration."""
        body = self.find(name).body
        return {ast.unparse(target) for n in body if isinstance(n, ast.Assign) for target in n.targets}

    def _decorated(self, name: str, decorator: str) -> set[str]:
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        methods = [node for node in self.find(name).body if isinstance(node, kinds)]
        return {m.name for m in methods if decorator in [ast.unparse(d) for d in m.decorator_list]}

    def abstract(self, name: str) -> set[str]:
        """Return the abstract methods that a class itself declares."""
        return self._decorated(name, "abstractmethod")

    def properties(self, name: str) -> set[str]:
        """Return the properties that a class itself declares."""
        return self._decorated(name, "property")

    def sets(self, name: str, attribute: str) -> bool:
        """Whether the constructor of a class gives its instances an attribute."""
        nodes = ast.walk(ast.parse(textwrap.dedent(self.source(f"{name}.__init__"))))
        return any(
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and ast.unparse(node) == f"self.{attribute}"
            for node in nodes
        )

    def constant(self, name: str) -> object:
        """Return a literal assigned at the top of the module."""
        for node in self._tree.body:
            if isinstance(node, ast.Assign) and name in [ast.unparse(target) for target in node.targets]:
                return ast.literal_eval(node.value)
        raise AssertionError(f"{name} is gone")
