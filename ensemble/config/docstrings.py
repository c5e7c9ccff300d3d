"""What classes and their fields are said to be, where they are defined."""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise
from typing import Any


def class_doc(cls: type[Any]) -> str | None:
    """Its own docstring; None where it has none but the signature that dataclasses put there."""
    doc = vars(cls).get("__doc__")
    return None if doc is None or doc.startswith(f"{cls.__name__}(") else inspect.cleandoc(doc)


def field_docs(cls: type[Any]) -> dict[str, str]:
    """The strings that follow fields in the source of the class and its bases; none where there is no source.

    pydantic's `use_attribute_docstrings` leaves the bases out, and parses the source whenever a class is read.
    """
    docs = {}
    for base in reversed(cls.__mro__):
        for statement, after in pairwise(_body(base)):
            match statement, after:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    docs[name] = inspect.cleandoc(text)
    return docs


def _body(cls: type[Any]) -> list[ast.stmt]:
    try:
        (statement,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError, SyntaxError):  # made without a file, or builtin
        return []
    return statement.body if isinstance(statement, ast.ClassDef) else []
