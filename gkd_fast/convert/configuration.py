"""Configuration files of other libraries as plain values; nothing in them is run."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from gkd_fast.errors import InputError

_LONGEST = 10_000  # of a list that is multiplied, and of a range
_LARGEST = 1_000  # of the numbers in a power
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitOr: operator.or_,  # of dictionaries
}
_SIGNS: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_}
_CALLS: dict[str, Callable[..., Any]] = {"tuple": tuple, "list": list, "float": float, "int": int, "range": range}


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
            raise self.refused(name, " or ".join(map(repr, allowed)), default)
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

    def refused(self, name: str, expected: str, default: Any = None) -> InputError:
        """The complaint about a value, which is the library's own default where the configuration has none."""
        whose = "" if name in self.values else " (by default)"
        shown = repr(_tuples(self.values.get(name, default)))[:80]
        return InputError(
            f"{self.origin}: {self._path(name)} = {shown}{whose} cannot be taken over; expected {expected}"
        )

    def _path(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def read_python(text: str, origin: str, folder: Path | None = None, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The names that a configuration of mmcv or mmengine assigns.

    Literals, ``dict(...)``, arithmetic, names assigned before and values of the base files are read; an `Unread` stands
    for any other value, and for what loops, conditions and calls may have changed.

    Args:
        text: of the configuration.
        origin: for messages.
        folder: that the base files' paths (``_base_``) start from; None: there may be none.
        above: files that this one is a base of.

    Raises:
        InputError: for text that is no Python, base files that are not there, and the style that imports its bases.
    """
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{origin}: expected a configuration in Python; {error}") from error
    if any(isinstance(statement, ast.With) for statement in statements):
        raise InputError(f"{origin}: imports its bases (read_base); expected the file that training writes beside them")
    base = _bases(statements, origin, folder, above)
    names: dict[str, Any] = {}
    for statement in statements:
        _follow(statement, names, base)
    names.pop("_base_", None)
    return _merged(base, names)


def _is_base(statement: ast.Assign) -> bool:
    return isinstance(statement.targets[0], ast.Name) and statement.targets[0].id == "_base_"


def read_python_file(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The same of a file, whose base files lie where it says.

    Raises:
        InputError: as `read_python`, and for a file that is none.
    """
    if path.resolve() in above:
        raise InputError(f"{path}: expected base files, got one that is a base of itself")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a configuration in Python; {error}") from error
    return read_python(text, str(path), path.parent, (*above, path.resolve()))


def _bases(statements: list[ast.stmt], origin: str, folder: Path | None, above: tuple[Path, ...]) -> dict[str, Any]:
    found: Any = next((_value(s.value, {}) for s in statements if isinstance(s, ast.Assign) and _is_base(s)), [])
    values: dict[str, Any] = {}
    for name in [found] if isinstance(found, (str, Unread)) else found:
        path = (folder or Path()) / str(name)
        if folder is None or not path.is_file():
            raise InputError(f"{origin}: expected its base file {name}; the file that training writes needs none")
        values = _merged(values, read_python_file(path, above))
    return values


def _follow(statement: ast.stmt, names: dict[str, Any], base: dict[str, Any]) -> None:
    """What a statement does to the names."""
    known = {**names, "_base_": base}
    match statement:
        case ast.Assign(targets=targets, value=value):
            result = _value(value, known)
            for target in targets:
                _assign(target, result, names, known)
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            _assign(target, _value(value, known), names, known)
        case ast.AugAssign(target=ast.Name(id=name) as target, op=sign, value=value):
            names[name] = _value(ast.BinOp(ast.Name(name, ast.Load()), sign, value), known)
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="update"), args=[value])):
            names[name] = _value(ast.BinOp(ast.Name(name, ast.Load()), ast.BitOr(), value), known)
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.ClassDef() | ast.Expr(value=ast.Constant()):
            pass
        case _:
            unread = Unread(ast.unparse(statement).partition("\n")[0])
            names.update(dict.fromkeys(_touched(statement) & set(names) | _touched(statement, ast.Store), unread))


def _assign(target: ast.expr, value: Any, names: dict[str, Any], known: dict[str, Any]) -> None:
    match target:
        case ast.Name(id=name):
            names[name] = value
        case ast.Subscript(value=inner, slice=index):
            try:
                _literal(inner, known)[_literal(index, known)] = value
            except _FAILURES:
                names.update({name: Unread(ast.unparse(target)) for name in _touched(inner)})
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            several = isinstance(value, (list, tuple)) and len(value) == len(parts)
            for number, part in enumerate(parts):
                _assign(part, value[number] if several else Unread(ast.unparse(target)), names, known)
        case _:
            names.update({name: Unread(ast.unparse(target)) for name in _touched(target)})


def _touched(node: ast.AST, context: type = ast.expr_context) -> set[str]:
    """Names within a piece of code, each of which it may change."""
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, context)}


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


_FAILURES = (TypeError, KeyError, IndexError, ValueError, AttributeError, ArithmeticError)


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    try:
        return _literal(node, names)
    except _FAILURES:
        return Unread(ast.unparse(node))


def _literal(node: ast.expr, names: dict[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items):
            return _items(items, names)
        case ast.Tuple(elts=items):
            return tuple(_items(items, names))
        case ast.Set(elts=[ast.Set(elts=[inner])]):  # {{_base_.name}}
            return _literal(inner, names)
        case ast.Dict(keys=keys, values=values):
            return _dictionary(
                [(key and _literal(key, names), value) for key, value in zip(keys, values, strict=True)], names
            )
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            return _dictionary([(keyword.arg, keyword.value) for keyword in keywords], names)
        case ast.Call(func=ast.Name(id=name), args=items, keywords=[]) if name in _CALLS and name not in names:
            return _called(name, [_literal(item, names) for item in items])
        case ast.ListComp(elt=item, generators=[ast.comprehension(target=ast.Name(id=name), iter=over, ifs=[])]):
            return [_literal(item, {**names, name: value}) for value in _literal(over, names)]
        case ast.UnaryOp(op=sign, operand=operand):
            return _SIGNS[type(sign)](_literal(operand, names))
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


def _items(items: list[ast.expr], names: dict[str, Any]) -> list[Any]:
    result: list[Any] = []
    for item in items:
        if isinstance(item, ast.Starred):
            result += list(_literal(item.value, names))
        else:
            result.append(_value(item, names))
    return result


def _called(name: str, values: list[Any]) -> Any:
    if name == "range" and max(map(abs, values)) > _LONGEST:
        raise ValueError(values)
    return _CALLS[name](*values)


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
    if sign is ast.Pow and max(abs(left), abs(right)) > _LARGEST:
        raise ValueError(sign)
    return _OPERATORS[sign](left, right)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which also knows detectron2's tags: tuples, and expressions as `Unread`."""


def _tuple(loader: yaml.SafeLoader, node: Any) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node))


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)
_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, _kind, node: _expression(_source(node)))


def _expression(text: str) -> Any:
    """The value of a Python expression, as detectron2's RetinaNet has its anchors; else an `Unread`."""
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, {})
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Unread(text)


def _source(node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ", ".join(str(item.value) for item in node.value)


def read_yaml(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a detectron2 configuration with those of its bases (``_BASE_``).

    As in detectron2, a string that is a Python literal, such as ``(10.0, 10.0, 5.0, 5.0)``, is its value.

    Args:
        path: of the file.
        above: files that this one is a base of.

    Raises:
        InputError: for a file that is no such configuration, and a base that is not there.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a configuration, found no file")
    if path.resolve() in above:
        raise InputError(f"{path}: expected base files, got one that is a base of itself")
    try:
        values = yaml.load(path.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a configuration in YAML; {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a configuration in YAML, got {type(values).__name__}")
    bases = values.pop("_BASE_", [])
    below: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        below = _merged(below, read_yaml(path.parent / Path(base).expanduser(), (*above, path.resolve())))
    return _merged(below, _decoded(values))


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _decoded(item) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
