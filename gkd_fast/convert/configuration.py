"""Configuration files of other libraries as plain values; nothing in them is run."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from gkd_fast.errors import InputError

_LONGEST = 10_000  # of a list that is multiplied
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Unread:
    """In the place of a value that is more than a literal.

    Args:
        text: its source.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Section:
    """A part of a configuration, which knows where it stands.

    Args:
        values: names and values; None counts as none.
        path: of the part, such as ``model.backbone``.
        origin: of the configuration, for messages.
    """

    def __init__(self, values: Any, path: str, origin: str) -> None:
        self.values, self.path, self.origin = values or {}, path, origin
        if not isinstance(self.values, dict):
            raise InputError(f"{origin}: {path}: expected named values, got {values!r}")

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """A value; the default where there is none.

        Raises:
            InputError: for a value that is no literal.
        """
        value = self.values.get(name, default)
        if isinstance(value, Unread):
            raise self.refused(name, "a literal value")
        return value

    def section(self, name: str) -> Section:
        """A part of this part, empty where there is none."""
        return Section(self.get(name), self._path(name), self.origin)

    def only(self, name: str, *allowed: Any, default: Any = None) -> Any:
        """A value that has to be one of those allowed; lists and tuples are the same.

        Raises:
            InputError: that names it.
        """
        value = _tuples(self.get(name, default))
        if value not in allowed:
            raise self.refused(name, " or ".join(map(repr, allowed)))
        return value

    def numbers(self, name: str, count: int, default: Sequence[float]) -> tuple[float, ...]:
        """A list of `count` numbers.

        Raises:
            InputError: for anything else.
        """
        value = self.get(name, default)
        if not isinstance(value, (list, tuple)) or len(value) != count or not all(map(is_number, value)):
            raise self.refused(name, f"{count} numbers")
        return tuple(map(float, value))

    def number(self, name: str, default: float | None = None) -> float:
        """One number.

        Raises:
            InputError: for anything else.
        """
        value = self.get(name, default)
        if not is_number(value):
            raise self.refused(name, "a number")
        return float(value)

    def refused(self, name: str, expected: str) -> InputError:
        """The complaint about a value."""
        shown = repr(_tuples(self.values.get(name)))
        return InputError(f"{self.origin}: {self._path(name)} = {shown[:80]} cannot be taken over; expected {expected}")

    def _path(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def read_python(text: str, origin: str, folder: Path | None = None) -> dict[str, Any]:
    """The names that a configuration of mmcv or mmengine assigns.

    Literals, ``dict(...)``, arithmetic, names assigned before and values of the base files are read; an `Unread` stands
    for any other value.

    Args:
        text: of the configuration.
        origin: for messages.
        folder: that the base files' paths (``_base_``) start from; None: there may be none.

    Raises:
        InputError: for text that is no Python, base files that are not there, and the style that imports its bases.
    """
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{origin}: expected a configuration in Python; {error}") from error
    if any(isinstance(statement, ast.With) for statement in statements):
        raise InputError(f"{origin}: imports its bases (read_base); expected the file that training writes beside them")
    assigned = [s for s in statements if isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name)]
    base = _bases(assigned, origin, folder)
    names: dict[str, Any] = {}
    for statement in assigned:
        names[_name(statement)] = _value(statement.value, {**names, "_base_": base})
    names.pop("_base_", None)
    return _merged(base, names)


def _name(statement: ast.Assign) -> str:
    """What a statement that assigns to one name assigns to."""
    (target,) = statement.targets
    assert isinstance(target, ast.Name)
    return target.id


def _bases(assigned: list[ast.Assign], origin: str, folder: Path | None) -> dict[str, Any]:
    found: Any = next((_value(s.value, {}) for s in assigned if _name(s) == "_base_"), [])
    values: dict[str, Any] = {}
    for name in [found] if isinstance(found, str) else found:
        path = (folder or Path()) / str(name)
        if folder is None or not path.is_file():
            raise InputError(f"{origin}: expected its base file {name}; the file that training writes needs none")
        values = _merged(values, read_python(path.read_text(), str(path), path.parent))
    return values


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`: dictionaries name by name, unless ``_delete_`` says that they replace."""
    result = dict(base)
    for name, value in over.items():
        if isinstance(value, dict):
            value = dict(value)
            replaces = value.pop("_delete_", False)
            below = base.get(name)
            value = _merged(below if isinstance(below, dict) and not replaces else {}, value)
        result[name] = value
    return result


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    try:
        return _literal(node, names)
    except (TypeError, KeyError, IndexError, ValueError, AttributeError, ArithmeticError):
        return Unread(ast.unparse(node))


def _literal(node: ast.expr, names: dict[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items):
            return [_value(item, names) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_value(item, names) for item in items)
        case ast.Set(elts=[ast.Set(elts=[inner])]):  # {{_base_.name}}
            return _literal(inner, names)
        case ast.Dict(keys=keys, values=values):
            return _dictionary(
                [(key and _literal(key, names), value) for key, value in zip(keys, values, strict=True)], names
            )
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            return _dictionary([(keyword.arg, keyword.value) for keyword in keywords], names)
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=value)]):
            return float(str(value))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_literal(operand, names)
        case ast.BinOp(left=left, op=sign, right=right):
            return _computed(type(sign), _literal(left, names), _literal(right, names))
        case ast.Name(id=name):
            return names[name]
        case ast.Attribute(value=inner, attr=name):
            return _literal(inner, names)[name]
        case ast.Subscript(value=inner, slice=index):
            return _literal(inner, names)[_literal(index, names)]
        case _:
            raise ValueError(node)


def _dictionary(items: list[tuple[Any, ast.expr]], names: dict[str, Any]) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key, value in items:
        result |= {key: _value(value, names)} if key is not None else dict(_literal(value, names))
    return result


def _computed(sign: type, left: Any, right: Any) -> Any:
    lists = [len(value) for value in (left, right) if isinstance(value, (list, tuple))]
    counts = [value for value in (left, right) if isinstance(value, int)]
    if lists and counts and max(lists) * max(counts) > _LONGEST:
        raise ValueError(sign)
    return _OPERATORS[sign](left, right)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also knows detectron2's tags: tuples, and expressions as `Unread`."""


def _tuple(loader: yaml.SafeLoader, node: Any) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node))


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)
_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, _kind, node: Unread(_source(node)))


def _source(node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ", ".join(str(item.value) for item in node.value)


def read_yaml(path: Path) -> dict[str, Any]:
    """The values of a detectron2 configuration with those of its bases (``_BASE_``).

    Raises:
        InputError: for a file that is no such configuration, and a base that is not there.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a configuration, found no file")
    try:
        values = yaml.load(path.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a configuration in YAML; {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a configuration in YAML, got {type(values).__name__}")
    base = values.pop("_BASE_", None)
    return values if base is None else _merged(read_yaml(path.parent / base), values)
