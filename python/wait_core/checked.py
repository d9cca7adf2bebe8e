"""Arguments of public functions, compared with their annotations before anything is done with them.

Only what an annotation says by itself is looked at: ranges are for the function.
"""

from __future__ import annotations

import ast
import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, ParamSpec, SupportsFloat, SupportsIndex, TypeVar

from wait_core._core import WaitCoreError
from wait_core.files import shown

if TYPE_CHECKING:
    from collections.abc import Callable

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

MAPPINGS = {"Mapping", "KvGroup"}


def checked(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Refuse arguments that are not of the annotated types with a `WaitCoreError` that names them."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    # Of strings: the module postpones the evaluation of annotations, and some of its types are for type checkers only.
    kinds = {name: ast.parse(function.__annotations__[name], mode="eval").body for name in names}

    @functools.wraps(function)
    def call(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        for name, value in (*zip(names, arguments, strict=False), *named.items()):
            if name in kinds and not fits(value, kinds[name]):
                raise WaitCoreError(f"{name} = {shown(value)}: must be {ast.unparse(kinds[name])}")
        return function(*arguments, **named)

    return call


def fits(value: object, kind: ast.expr) -> bool:  # noqa: PLR0911 - a line for each kind
    """Whether a value is of the type that an annotation says."""
    if isinstance(kind, ast.BinOp):
        return fits(value, kind.left) or fits(value, kind.right)
    if isinstance(kind, ast.Subscript):
        name = ast.unparse(kind.value)
        if name == "Sequence":
            # An array is none for Python, yet serves as one.
            return _is_sequence(value) and all(fits(each, kind.slice) for each in value)  # type: ignore[attr-defined]
        if name == "tuple" and isinstance(kind.slice, ast.Tuple):
            wanted = kind.slice.elts
            return (
                _is_sequence(value)
                and len(value) == len(wanted)  # type: ignore[arg-type]
                and all(map(fits, value, wanted))  # type: ignore[call-overload]
            )
    else:
        name = ast.unparse(kind)
    if name == "None":
        return value is None
    if name == "float":
        return isinstance(value, SupportsFloat | SupportsIndex)
    if name == "int":
        return isinstance(value, SupportsIndex)
    if name == "os.PathLike":
        return isinstance(value, os.PathLike)
    if name == "Callable":
        return callable(value)
    if name in MAPPINGS:
        return isinstance(value, Mapping)
    return any(of.__name__ == name for of in type(value).__mro__)


def _is_sequence(value: object) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__iter__") and not isinstance(value, str | bytes | Mapping)
