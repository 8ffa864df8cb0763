"""What a class says of itself, for people: its sentence, its fields, their types, defaults and docstrings."""

import ast
import inspect
import json
import textwrap
import types
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import AwareDatetime, BaseModel, SecretStr
from pydantic.fields import FieldInfo

from schemas.reasons import REASONS

GENERATED: Final = "<!-- Made by docs/generate.py from the code. Don't edit: change the code and run `make docs`. -->"
_PLAIN: Final[dict[object, str]] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    datetime: "instant",
    AwareDatetime: "instant",
    object: "anything",
    Any: "anything",
    Path: "path",
    SecretStr: "secret",
}


def sentence_of(of: type) -> str:
    """The docstring on one line."""
    return _one_line(inspect.getdoc(of) or "")


@cache
def attribute_docs(of: type) -> dict[str, str]:
    """Field → the string below it in the source, inherited ones included."""
    found: dict[str, str] = {}
    for cls in reversed(of.__mro__):
        if cls.__module__.split(".")[0] not in ("schemas", "kernel", "services"):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        if not isinstance(tree, ast.ClassDef):
            raise TypeError(f"{cls} has no class statement")
        for here, below in zip(tree.body, tree.body[1:], strict=False):
            match here, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = _one_line(text)
                case _:
                    pass
    return found


def type_name(annotation: Any) -> str:
    """`tuple[Reason, ...]` → `list of [Reason](reasons.md)`."""
    arguments = get_args(annotation)
    match get_origin(annotation):
        case origin if origin is Annotated:
            return type_name(arguments[0])
        case origin if origin is Union or origin is types.UnionType:
            if set(arguments) == set(REASONS):
                return "[Reason](reasons.md)"
            known = [argument for argument in arguments if argument is not types.NoneType]
            return " or ".join([*map(type_name, known), *(["none"] if len(known) < len(arguments) else [])])
        case origin if origin is Literal:
            return " or ".join(f"`{json.dumps(argument)}`" for argument in arguments)
        case origin if origin in (tuple, list):
            return f"list of {type_name(arguments[0])}"
        case origin if origin is dict:
            return f"map of {type_name(arguments[0])} to {type_name(arguments[1])}"
        case _:
            pass
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](events.md#{annotation.__name__.lower()})"
    return _PLAIN.get(annotation) or f"{annotation.__name__}"


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return f"`{getattr(field.default_factory, '__name__', 'made')}()`"
    match field.default:
        case None:
            return "none"
        case BaseModel():
            return "its defaults"
        case Path() as path:
            return f"`{path}`"
        case str() as text:
            return f"`{text}`" if text else "empty"
        case value:
            return f"`{json.dumps(value)}`"


def field_table(of: type[BaseModel], *, without: Iterable[str] = ()) -> Iterator[str]:
    docs = attribute_docs(of)
    fields = {name: field for name, field in of.model_fields.items() if name not in set(without)}
    if fields:
        rows = (
            (f"`{name}`", type_name(field.annotation), default_of(field), docs.get(name, ""))
            for name, field in fields.items()
        )
        yield from table(("Field", "Type", "Default", ""), rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"
    yield ""


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every class of ours that an annotation mentions, reasons left out: they have a page of their own."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation not in REASONS:
            yield annotation
        return
    for argument in get_args(annotation):
        yield from models_in(argument)


def values_below(roots: Iterable[type[BaseModel]]) -> list[type[BaseModel]]:
    """Every class that the fields of these use, however deep; by name."""
    found: dict[str, type[BaseModel]] = {}
    open_ = list(roots)
    while open_:
        for field in open_.pop().model_fields.values():
            for model in models_in(field.annotation):
                if model.__name__ not in found:
                    found[model.__name__] = model
                    open_.append(model)
    return [found[name] for name in sorted(found)]


def _one_line(text: str) -> str:
    return " ".join(text.split())
