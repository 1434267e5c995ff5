"""Settings as options: every field of nested dataclasses by one flat name.

The names are the same on a command line (``--teacher-width``), in Python (``teacher_width=``) and in a config.json.
Marks beside a field say more: ``epochs: Annotated[int, POSITIVE, MAIN] = 5``.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from gkd_fast.errors import InputError
from gkd_fast.ranges import check_ranges, option_name

T = TypeVar("T")


@dataclass(frozen=True)
class Mark:
    """Something that holds for a field."""

    meaning: str


MAIN = Mark("one of the options that most people need: --help shows it, where --help-all shows all")
PREFIX = Mark("a dataclass whose options begin with the name of the field that holds it")
UNNAMED = Mark("in a dataclass of that kind, the field whose option is the prefix alone")


@dataclass(frozen=True)
class Alias:
    """A further name of a field, such as the one that it had before."""

    name: str


@dataclass(frozen=True)
class Option:
    """A setting.

    Attributes:
        name: in Python, of no other option of the same settings.
        path: the fields that lead to it.
        group: the dataclass that it is shown with, as the name of the field that holds it; empty: the outermost.
        kind: type, with what else is written beside the field.
        owner: dataclass that has the field.
        role: what the field is about, where its name begins with a prefix ("teacher").
    """

    name: str
    path: tuple[str, ...]
    group: str
    kind: Any
    owner: type
    role: str = ""

    @property
    def flag(self) -> str:
        """The name on a command line."""
        return option_name(self.name)

    @property
    def marks(self) -> tuple[Any, ...]:
        """What is written beside the field."""
        return getattr(self.kind, "__metadata__", ())

    @property
    def aliases(self) -> tuple[str, ...]:
        """Further names, in Python."""
        return tuple(mark.name for mark in self.marks if isinstance(mark, Alias))

    @property
    def text(self) -> str:
        """The text below the field, in one line."""
        text = _texts(self.owner).get(self.path[-1], "")
        return f"{self.role.capitalize()}'s {text[:1].lower()}{text[1:]}" if self.role else text


def options_of(kind: type) -> tuple[Option, ...]:
    """The options of a dataclass and of the dataclasses in it, in order."""
    return _known_options(kind)


@cache
def _known_options(kind: type) -> tuple[Option, ...]:
    return tuple(_options(kind, (), "", ""))


def _options(kind: type, path: tuple[str, ...], group: str, role: str) -> Iterator[Option]:
    hints = get_type_hints(kind, include_extras=True)
    # A class's own fields before those of its bases: they are what the others belong to.
    own_names = inspect.get_annotations(kind)
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name not in own_names):
        hint = hints[field.name]
        own, marks = _plain(hint), getattr(hint, "__metadata__", ())
        inner = (*path, field.name)
        if isinstance(own, type) and dataclasses.is_dataclass(own):
            if PREFIX in marks:
                yield from _options(own, inner, group, field.name)
            else:
                yield from _options(own, inner, field.name, "")
            continue
        name = role if UNNAMED in marks else f"{role}_{field.name}" if role else field.name
        yield Option(name, inner, group, hint, kind, role)


def values_of(settings: Any) -> dict[str, Any]:
    """The value of every option, by name."""
    return {option.name: reduce(getattr, option.path, settings) for option in options_of(type(settings))}


def changed(settings: T, values: Mapping[str, Any]) -> T:
    """A copy with other values; lists become tuples and texts paths, as the fields ask for.

    Args:
        settings: a dataclass.
        values: by the name of the option or an alias.

    Raises:
        TypeError: for a name that is no option, or a value that is not of the field's type.
        InputError: for a text that is not among the field's choices.
    """
    found = {name: option for option in options_of(type(settings)) for name in (option.name, *option.aliases)}
    for name in values:
        if name not in found:
            near = difflib.get_close_matches(name, found, 1)
            raise TypeError(f"{name}: expected an option's name{f' ({near[0]}?)' if near else ''}")
    return _replaced(settings, {found[name].path: _typed(found[name], value) for name, value in values.items()})


def check_options(settings: Any) -> None:
    """Check every option that has a range.

    Raises:
        InputError: naming the option, what was expected and what was given.
    """
    options = options_of(type(settings))
    for owner in dict.fromkeys(option.path[:-1] for option in options):
        flags = {option.path[-1]: option.flag for option in options if option.path[:-1] == owner}
        check_ranges(reduce(getattr, owner, settings), flags.__getitem__)


def _replaced(settings: Any, values: dict[tuple[str, ...], Any]) -> Any:
    own = {path[0]: value for path, value in values.items() if len(path) == 1}
    for field in dict.fromkeys(path[0] for path in values if len(path) > 1):
        inner = {path[1:]: value for path, value in values.items() if path[0] == field}
        own[field] = _replaced(getattr(settings, field), inner)
    return dataclasses.replace(settings, **own)


def _typed(option: Option, value: Any) -> Any:
    """The value in the type of the option's field."""
    kind = _plain(option.kind)
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    for own in kinds:
        if (converted := _converted(own, value)) is not _MISFIT:
            return converted
    error = InputError if get_origin(kind) is Literal else TypeError
    raise error(f"{option.name}: expected {' or '.join(map(_described, kinds))}, got {value!r}")


_MISFIT = object()


def _converted(kind: Any, value: Any) -> Any:
    if get_origin(kind) is Literal:
        if isinstance(value, bool) and "on" in get_args(kind):
            value = "on" if value else "off"
        return value if value in get_args(kind) else _MISFIT
    if get_origin(kind) is tuple:
        return _converted_tuple(get_args(kind), value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    fits = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
    return value if fits else _MISFIT


def _converted_tuple(kinds: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        return _MISFIT
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(value)
    items = [_converted(kind, item) for kind, item in zip(kinds, value, strict=False)]
    return tuple(items) if len(kinds) == len(value) and _MISFIT not in items else _MISFIT


def _described(kind: Any) -> str:
    items = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(items)}"
    if get_origin(kind) is tuple:
        return f"tuple of {' and '.join(item.__name__ for item in items if item is not ...)}"
    return "None" if kind is NoneType else kind.__name__


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


@cache
def _texts(kind: type) -> dict[str, str]:
    """The texts below the fields of a dataclass and of its bases."""
    texts: dict[str, str] = {}
    for owner in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for line, below in pairwise(definition.body):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(below, ast.Expr):
                texts[line.target.id] = " ".join(ast.literal_eval(below.value).split())
    return texts
