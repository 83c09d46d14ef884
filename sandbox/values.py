"""Values that cross between processes: their one JSON form, and their plain Python form.

The same form is used on the wire (calls in, results out) and in an I/O specification, where
people write it by hand: ordinary JSON, and objects with a single `$`-key for what JSON lacks.

    {"$tuple": […]} {"$set": […]} {"$frozenset": […]} {"$dict": [[key, value], …]}
    {"$int": "0x…"} {"$float": "nan"} {"$complex": [re, im]} {"$bytes": base64}
    {"$datetime": iso} {"$date": iso} {"$timedelta": [days, seconds, microseconds]}
    {"$decimal": "1.5"} {"$fraction": [1, 3]} {"$na": "NaT"} {"$type": "int"}
    {"$deque": […]} {"$range": [start, stop, step]}
    {"$scalar": [dtype, value]} {"$array": {"dtype", "shape", "data"}}
    {"$series": {"name", "dtype", "index", "data"}}
    {"$dataframe": {"columns", "index", "data", "dtypes"}}     # `split` orientation
    {"$opaque": type name}                                     # equals nothing, itself included

Counters, default and ordered dicts cross as dicts (they equal one in Python, too).
`encode` looks at exact types only (`type(x) is int`): a subclass with a lying `__eq__` or
`__iter__` is opaque and none of its methods is called. Whatever exceeds the budget is opaque as
a whole, never cut, so that a wrong tail cannot hide behind a cut. `decode` accepts arbitrary JSON
and raises nothing but `ValueError`. Neither needs numpy or pandas; `revive` does, in the child.
"""

from __future__ import annotations

import base64
import binascii
import collections
import datetime
import decimal
import fractions
import math
import re
import sys
from dataclasses import dataclass, field
from typing import Any

MAX_NODES = 20_000
MAX_DEPTH = 40
MAX_TEXT = 50_000
MAX_INT_BITS = 80_000
MAX_CELLS = 200_000
_SMALL_INT = 1 << 63


class Opaque:
    """A value that could not cross: equal to nothing, not even to itself."""

    __slots__ = ("type_name",)

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.type_name}>"


@dataclass(frozen=True, slots=True)
class CallError:
    """In the place of a value: the call raised instead of returning."""

    error_type: str
    message: str


@dataclass(frozen=True, slots=True)
class Missing:
    """pandas' NA or NaT."""

    name: str

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Scalar:
    """A numpy scalar: its dtype and the plain Python value."""

    dtype: str
    value: Any


@dataclass(frozen=True, slots=True)
class Array:
    """A numpy array: `items` is flat, in C order, as plain Python values."""

    dtype: str | None
    shape: tuple[int, ...]
    items: tuple[Any, ...]
    matrix: bool = False

    def nested(self) -> Any:
        """The items as nested lists of the array's shape."""
        flat = list(self.items)
        for size in reversed(self.shape[1:]):
            flat = [flat[i : i + size] for i in range(0, len(flat), size)] if size else []
        return flat if self.shape else flat[0]


@dataclass(frozen=True, slots=True)
class Index:
    """Row or column labels; `default` says that they simply count from 0."""

    labels: tuple[Any, ...]
    names: tuple[Any, ...] = (None,)
    dtype: str | None = None
    default: bool = False


@dataclass(frozen=True, slots=True)
class Series:
    """A pandas series; `dtype` is None where a specification does not say."""

    name: Any
    dtype: str | None
    index: Index
    items: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """A pandas data frame, by columns; a dtype is None where a specification does not say."""

    columns: Index
    dtypes: tuple[str | None, ...]
    index: Index
    data: tuple[tuple[Any, ...], ...] = field(repr=False)


PLAIN_TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)
}


class _Cut(Exception):
    """The budget is used up: the whole value becomes opaque."""


class _Encoder:
    def __init__(self, max_nodes: int, max_text: int) -> None:
        self.nodes = max_nodes
        self.cells = MAX_CELLS
        self.max_text = max_text
        self.text_left = 1 << 20

    def encode(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        self.nodes -= 1
        if self.nodes < 0 or depth > MAX_DEPTH:
            raise _Cut
        if kind is int:
            return self._int(value)
        if kind is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if kind is str:
            return self._text(value)
        if kind is list:
            return [self.encode(item, depth + 1) for item in value]
        if kind is dict:
            return self._dict(value, depth)
        simple = _SIMPLE.get(kind)
        if simple is not None:
            return simple(self, value, depth)
        return self._scientific(value, kind, depth)

    def _int(self, value: int) -> Any:
        if -_SMALL_INT <= value < _SMALL_INT:
            return value
        if value.bit_length() > MAX_INT_BITS:
            raise _Cut
        return {"$int": hex(value)}

    def _text(self, value: str) -> str:
        self.text_left -= len(value)
        if len(value) > self.max_text or self.text_left < 0:
            raise _Cut
        return value

    def _dict(self, value: dict[Any, Any], depth: int) -> Any:
        items = list(value.items())
        if all(type(key) is str and key[:1] != "$" for key, _ in items):
            return {self._text(k): self.encode(v, depth + 1) for k, v in items}
        return {"$dict": [[self.encode(k, depth + 1), self.encode(v, depth + 1)] for k, v in items]}

    def _mapping(self, value: Any, depth: int) -> Any:
        return self._dict(dict(dict.items(value)), depth)

    def _sequence(self, value: Any, depth: int) -> Any:
        if type(value) is range:
            return {"$range": [self._int(part) for part in (value.start, value.stop, value.step)]}
        return {"$deque": [self.encode(item, depth + 1) for item in value]}

    def _type(self, value: type, depth: int) -> Any:
        name = class_name(value)
        return {"$type": name} if PLAIN_TYPES.get(name) is value else {"$opaque": "type"}

    def _bytes(self, value: bytes, depth: int) -> Any:
        if len(value) > self.max_text:
            raise _Cut
        return {"$bytes": base64.b64encode(value).decode("ascii")}

    def _tuple(self, value: tuple[Any, ...], depth: int) -> Any:
        return {"$tuple": [self.encode(item, depth + 1) for item in value]}

    def _set(self, value: Any, depth: int) -> Any:
        name = "$set" if type(value) is set else "$frozenset"
        return {name: [self.encode(item, depth + 1) for item in value]}

    def _plain(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is complex:
            return {"$complex": [self.encode(value.real, depth), self.encode(value.imag, depth)]}
        if kind is datetime.timedelta:
            return {"$timedelta": [value.days, value.seconds, value.microseconds]}
        if kind is datetime.datetime and value.tzinfo is None:
            return {"$datetime": value.isoformat()}
        if kind is datetime.date:
            return {"$date": value.isoformat()}
        if kind is decimal.Decimal:
            return {"$decimal": self._text(str(value))}
        if kind is fractions.Fraction:
            return {"$fraction": [self._int(value.numerator), self._int(value.denominator)]}
        return {"$opaque": class_name(kind)}

    def _known(self, value: Any, depth: int) -> Any:
        """Encode the plain records of this module (parent to child, and specifications)."""
        kind = type(value)
        if kind is Missing:
            return {"$na": value.name}
        if kind is Scalar:
            return {"$scalar": [value.dtype, self.encode(value.value, depth + 1)]}
        if kind is Array:
            data = self._items(value.items, depth)
            form = {"dtype": value.dtype, "shape": list(value.shape), "data": data}
            return {"$array": {**form, "matrix": True} if value.matrix else form}
        if kind is Series:
            return {
                "$series": {
                    "name": self.encode(value.name, depth + 1),
                    "dtype": value.dtype,
                    "index": self._index(value.index, depth),
                    "data": self._items(value.items, depth),
                }
            }
        if kind is Frame:
            columns = [self._items(column, depth) for column in value.data]
            return {
                "$dataframe": {
                    "columns": self._index(value.columns, depth),
                    "index": self._index(value.index, depth),
                    "data": [list(row) for row in zip(*columns, strict=True)],
                    "dtypes": list(value.dtypes),
                }
            }
        return {"$opaque": value.type_name if kind is Opaque else class_name(kind)}

    def _items(self, items: Any, depth: int) -> list[Any]:
        self.cells -= len(items)
        if self.cells < 0:
            raise _Cut
        self.nodes += len(items)
        return [self.encode(item, depth + 1) for item in items]

    def _index(self, index: Index, depth: int) -> Any:
        if index.default:
            return {"range": len(index.labels)}
        return {
            "labels": self._items(index.labels, depth),
            "names": [self.encode(name, depth + 1) for name in index.names],
            "dtype": index.dtype,
        }

    def _scientific(self, value: Any, kind: type, depth: int) -> Any:
        """Encode numpy and pandas values, by exact type and without calling user code."""
        numpy, pandas = sys.modules.get("numpy"), sys.modules.get("pandas")
        if numpy is not None:
            if kind is numpy.ndarray or kind is numpy.matrix:
                return self._known(self._array(value), depth)
            if kind in _numpy_scalars(numpy) and value.dtype.kind in "biufcUSmM":
                return self._known(_scalar(value), depth)
        if pandas is not None:
            if value is pandas.NA or value is pandas.NaT:
                return {"$na": "NA" if value is pandas.NA else "NaT"}
            if kind is pandas.Timestamp:
                return {"$scalar": ["datetime64[ns]", value.isoformat()]}
            if kind is pandas.Timedelta:
                return {"$scalar": ["timedelta64[ns]", value.isoformat()]}
            if kind is pandas.Series:
                return self._known(self._series(value), depth)
            if kind is pandas.DataFrame:
                return self._known(self._frame(value), depth)
            if kind in _pandas_indexes(pandas):
                index = self._labels(value)
                items = [{"$tuple": [_bare(x) for x in value.names]}, index.dtype]
                return {"$index": [*items, self._items(index.labels, depth)]}
        return {"$opaque": class_name(kind)}

    def _array(self, value: Any) -> Array:
        if value.size > self.cells or value.dtype.kind not in "biufcUSmMO":
            raise _Cut
        matrix = type(value) is not sys.modules["numpy"].ndarray
        flat = sys.modules["numpy"].asarray(value).ravel()
        return Array(value.dtype.str, tuple(value.shape), _column(flat), matrix)

    def _labels(self, index: Any) -> Index:
        if len(index) > self.cells:
            raise _Cut
        pandas = sys.modules["pandas"]
        names = tuple(index.names)
        counts = type(index) is pandas.RangeIndex and index.start == 0 and index.step == 1
        if counts and names == (None,):
            return Index(tuple(range(len(index))), names, "int64", default=True)
        if isinstance(index, pandas.MultiIndex):
            return Index(tuple(index), names, "multi")
        return Index(_column(index), names, str(index.dtype))

    def _series(self, value: Any) -> Series:
        if value.size > self.cells:
            raise _Cut
        return Series(value.name, str(value.dtype), self._labels(value.index), _column(value))

    def _frame(self, value: Any) -> Frame:
        if value.size > self.cells or value.shape[1] > 1000:
            raise _Cut
        columns = [value.iloc[:, i] for i in range(value.shape[1])]
        return Frame(
            self._labels(value.columns),
            tuple(str(column.dtype) for column in columns),
            self._labels(value.index),
            tuple(_column(column) for column in columns),
        )


_SIMPLE: dict[type, Any] = {
    bytes: _Encoder._bytes,
    tuple: _Encoder._tuple,
    set: _Encoder._set,
    frozenset: _Encoder._set,
    type: _Encoder._type,
    range: _Encoder._sequence,
    collections.deque: _Encoder._sequence,
    collections.Counter: _Encoder._mapping,
    collections.defaultdict: _Encoder._mapping,
    collections.OrderedDict: _Encoder._mapping,
    **dict.fromkeys(
        (
            complex,
            datetime.datetime,
            datetime.date,
            datetime.timedelta,
            decimal.Decimal,
            fractions.Fraction,
        ),
        _Encoder._plain,
    ),
    **dict.fromkeys((Opaque, Missing, Scalar, Array, Series, Frame), _Encoder._known),
}


def class_name(kind: type) -> str:
    """A class's name, read past any metaclass that would like to run code here."""
    name = type.__dict__["__name__"].__get__(kind)
    return str(name)[:100]


def _numpy_scalars(numpy: Any) -> frozenset[type]:
    return frozenset(numpy.sctypeDict.values())


def _pandas_indexes(pandas: Any) -> tuple[type, ...]:
    return (
        pandas.Index,
        pandas.RangeIndex,
        pandas.MultiIndex,
        pandas.DatetimeIndex,
        pandas.TimedeltaIndex,
        pandas.CategoricalIndex,
    )


def _bare(value: Any) -> Any:
    return value if type(value) in (str, int, float, bool) else None


def _scalar(value: Any) -> Scalar:
    if value.dtype.kind in "mM":
        return Scalar(value.dtype.name, str(value))
    return Scalar(value.dtype.name, value.item())


def _column(values: Any) -> tuple[Any, ...]:
    """Plain Python values of a one-dimensional array, series or index.

    Times become text through numpy, so that no calendar arithmetic is needed outside.
    """
    dtype = values.dtype
    kind = getattr(dtype, "kind", "O")
    numpy = sys.modules["numpy"]
    if kind in "mM" and isinstance(dtype, numpy.dtype):
        return tuple(str(item) for item in numpy.asarray(values))
    if isinstance(dtype, numpy.dtype) and kind in "biufcUSO":
        return tuple(numpy.asarray(values).tolist())
    return tuple(values)


def encode(
    value: Any, *, max_nodes: int = MAX_NODES, max_text: int = MAX_TEXT, strict: bool = False
) -> Any:
    """Turn a value into its JSON form.

    Args:
        value: Anything. Only exact built-in, numpy and pandas types are looked into.
        max_nodes: How many values inside it may be encoded (cells of arrays and frames have
            their own budget of 200,000).
        max_text: Longest single string, in characters.
        strict: Raise instead of giving up on the value.

    Returns:
        JSON-ready data; `{"$opaque": type name}` for what cannot cross or is too big.

    Raises:
        ValueError: with `strict`, when the value or a part of it is opaque.
    """
    try:
        form = _Encoder(max_nodes, max_text).encode(value)
    except (_Cut, RecursionError, MemoryError, RuntimeError):
        form = {"$opaque": class_name(type(value))}
    if strict and _has_opaque(form):
        raise ValueError(f"a value of type {type(value).__name__} cannot be written as JSON")
    return form


def decode(form: Any) -> Any:
    """Turn the JSON form into plain Python values and the records of this module.

    Args:
        form: Anything that `json.loads` can return.

    Returns:
        The value; unknown tags raise.

    Raises:
        ValueError: when it is malformed, nested deeper than 50, or of absurd size.
    """
    try:
        return _decode(form, 0)
    except (TypeError, KeyError, OverflowError, RecursionError, binascii.Error) as error:
        raise ValueError(f"malformed value: {type(error).__name__}") from error


def revive(value: Any) -> Any:
    """Turn the records of this module into real numpy and pandas objects (in a sandbox).

    Raises:
        ValueError: when numpy or pandas does not take the data. The caller's data is at fault.
    """
    if isinstance(value, list):
        return [revive(item) for item in value]
    if isinstance(value, tuple):
        return tuple([revive(item) for item in value])
    if isinstance(value, dict):
        return {revive(key): revive(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return type(value)([revive(item) for item in value])
    if isinstance(value, (Scalar, Array)):
        import numpy

        if isinstance(value, Scalar):
            return numpy.dtype(value.dtype).type(value.value)
        items = list(value.items)
        if value.dtype == "|O" or any(isinstance(item, (Array, Missing)) for item in items):
            array = numpy.empty(len(items), dtype=object)
            array[:] = [revive(item) for item in items]
            return array.reshape(value.shape)
        array = numpy.array(items, dtype=value.dtype).reshape(value.shape)
        return array.view(numpy.matrix) if value.matrix else array
    if isinstance(value, (Series, Frame, Index, Missing)):
        return _revive_pandas(value)
    return value


def _revive_pandas(value: Any) -> Any:
    import pandas

    if isinstance(value, Missing):
        return pandas.NA if value.name == "NA" else pandas.NaT
    if isinstance(value, Index):
        if value.default:
            return pandas.RangeIndex(len(value.labels))
        if len(value.names) > 1 or value.dtype == "multi":
            tuples = [tuple(revive(list(label))) for label in value.labels]
            return pandas.MultiIndex.from_tuples(tuples, names=list(value.names))
        labels = [revive(label) for label in value.labels]
        return pandas.Index(labels, name=value.names[0], dtype=value.dtype, tupleize_cols=False)
    index = _revive_pandas(value.index)
    if isinstance(value, Series):
        items = [revive(item) for item in value.items]
        return pandas.Series(items, index=index, name=value.name, dtype=value.dtype)
    columns = [
        pandas.Series([revive(item) for item in column], index=index, dtype=dtype)
        for column, dtype in zip(value.data, value.dtypes, strict=True)
    ]
    if not columns:
        return pandas.DataFrame(index=index)
    frame = pandas.concat(columns, axis=1)
    frame.columns = _revive_pandas(value.columns)
    return frame


def is_opaque(value: Any) -> bool:
    """Whether a decoded value is opaque or holds something opaque at any depth."""
    if isinstance(value, Opaque):
        return True
    if isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        return any(map(is_opaque, value))
    if isinstance(value, dict):
        return any(map(is_opaque, value)) or any(map(is_opaque, value.values()))
    if isinstance(value, (Array, Series)):
        return any(map(is_opaque, value.items))
    if isinstance(value, Frame):
        return any(any(map(is_opaque, column)) for column in value.data)
    return False


def _has_opaque(form: Any) -> bool:
    if isinstance(form, dict):
        return "$opaque" in form or any(map(_has_opaque, form.values()))
    return isinstance(form, list) and any(map(_has_opaque, form))


def _decode(form: Any, depth: int) -> Any:
    if depth > MAX_DEPTH + 10:
        raise ValueError("nested too deeply")
    if form is None or isinstance(form, (bool, int, float, str)):
        return form
    if isinstance(form, list):
        return [_decode(item, depth + 1) for item in form]
    if not isinstance(form, dict):
        raise ValueError(f"not JSON: {type(form).__name__}")
    if len(form) == 1:
        ((tag, body),) = form.items()
        if tag[:1] == "$":
            decoder = _DECODERS.get(tag)
            if decoder is None:
                raise ValueError(f"unknown tag {tag[:40]!r}")
            return decoder(body, depth + 1)
    return {key: _decode(item, depth + 1) for key, item in form.items()}


def _list(body: Any, depth: int) -> list[Any]:
    if not isinstance(body, list):
        raise ValueError("a list was expected")
    return [_decode(item, depth + 1) for item in body]


def _decode_int(body: Any, depth: int) -> int:
    if not isinstance(body, str) or len(body) > MAX_INT_BITS // 4 + 4:
        raise ValueError("$int wants hexadecimal text")
    if not re.fullmatch(r"-?0x[0-9a-f]+", body):
        raise ValueError("$int wants hexadecimal text")
    return int(body, 16)


def _decode_float(body: Any, depth: int) -> float:
    if body not in ("nan", "inf", "-inf"):
        raise ValueError("$float wants nan, inf or -inf")
    return float(body)


def _decode_number(form: Any, depth: int) -> float:
    value = _decode(form, depth)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("a number was expected")
    return float(value)


def _decode_complex(body: Any, depth: int) -> complex:
    real, imag = (_decode_number(part, depth) for part in _pair(body))
    return complex(real, imag)


def _pair(body: Any) -> tuple[Any, Any]:
    if not isinstance(body, list) or len(body) != 2:
        raise ValueError("a pair was expected")
    return body[0], body[1]


def _decode_bytes(body: Any, depth: int) -> bytes:
    return base64.b64decode(_as_text(body), validate=True)


def _as_text(body: Any) -> str:
    if not isinstance(body, str):
        raise ValueError("text was expected")
    return body


def _hashable(items: list[Any]) -> list[Any]:
    # A NaN or an opaque item in a set can never be compared: opaque parts do not hash, and
    # that is the TypeError which `decode` reports.
    # Numbers can be chosen so that all of them share one hash, which makes a set quadratic:
    # no honest result does that.
    hashes = {hash(item) for item in items}
    if len(items) > 1000 and len(hashes) * 2 < len(items):
        raise ValueError("too many colliding items")
    return items


def _decode_dict(body: Any, depth: int) -> dict[Any, Any]:
    if not isinstance(body, list):
        raise ValueError("$dict wants a list of pairs")
    pairs = []
    for item in body:
        key, value = _pair(item)
        pairs.append((_decode(key, depth + 1), _decode(value, depth + 1)))
    _hashable([key for key, _ in pairs])
    return dict(pairs)


def _decode_date(body: Any, depth: int) -> datetime.date:
    return datetime.date.fromisoformat(_as_text(body)[:40])


def _decode_datetime(body: Any, depth: int) -> datetime.datetime:
    return datetime.datetime.fromisoformat(_as_text(body)[:40])


def _decode_timedelta(body: Any, depth: int) -> datetime.timedelta:
    days, seconds, micros = body
    if not all(type(part) is int for part in body):
        raise ValueError("$timedelta wants three integers")
    return datetime.timedelta(days, seconds, micros)


def _decode_decimal(body: Any, depth: int) -> decimal.Decimal:
    try:
        return decimal.Decimal(_as_text(body)[:1000])
    except decimal.InvalidOperation as error:
        raise ValueError("$decimal wants a decimal number") from error


def _decode_fraction(body: Any, depth: int) -> fractions.Fraction:
    top, bottom = _list(body, depth)
    if type(top) is not int or type(bottom) is not int or bottom == 0:
        raise ValueError("$fraction wants two integers")
    return fractions.Fraction(top, bottom)


def _decode_range(body: Any, depth: int) -> range:
    parts = _list(body, depth)
    if len(parts) != 3 or not all(type(part) is int for part in parts):
        raise ValueError("$range wants three integers")
    return range(*parts)


def _decode_type(body: Any, depth: int) -> type:
    if not isinstance(body, str) or body not in PLAIN_TYPES:
        raise ValueError("$type wants the name of a built-in type")
    return PLAIN_TYPES[body]


def _decode_na(body: Any, depth: int) -> Missing:
    if body not in ("NA", "NaT"):
        raise ValueError("$na wants NA or NaT")
    return Missing(body)


def _decode_scalar(body: Any, depth: int) -> Scalar:
    dtype, value = _pair(body)
    return Scalar(_as_text(dtype)[:40], _decode(value, depth))


def _decode_array(body: Any, depth: int) -> Array:
    _keys(body, {"data"}, {"dtype", "shape", "matrix"})
    data = _list(body["data"], depth)
    if "shape" in body:
        shape = tuple(body["shape"])
        if len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("an array's shape is a list of sizes")
        if math.prod(shape) != len(data):
            raise ValueError("an array's data and shape disagree")
        return Array(_dtype(body.get("dtype")), shape, tuple(data), body.get("matrix") is True)
    shape, flat = _flatten(data)
    return Array(_dtype(body.get("dtype")), shape, tuple(flat))


def _flatten(data: list[Any]) -> tuple[tuple[int, ...], list[Any]]:
    """Shape and flat items of nested lists, as people write an array."""
    shape = [len(data)]
    while data and all(isinstance(item, list) for item in data):
        sizes = {len(item) for item in data}
        if len(sizes) != 1:
            raise ValueError("the rows of an array have different lengths")
        shape.append(sizes.pop())
        data = [part for item in data for part in item]
    return tuple(shape), data


def _dtype(body: Any) -> str | None:
    if body is not None and (not isinstance(body, str) or len(body) > 100):
        raise ValueError("a dtype is text")
    return body


def _keys(body: Any, required: set[str], optional: set[str]) -> None:
    if not isinstance(body, dict):
        raise ValueError("an object was expected")
    missing, unknown = required - body.keys(), body.keys() - required - optional
    if missing:
        raise ValueError(f"{sorted(missing)[0]!r} is missing")
    if unknown:
        raise ValueError(f"{sorted(unknown)[0][:40]!r} is not known here")


def _decode_labels(body: Any, size: int, depth: int) -> Index:
    if body is None:
        return Index(tuple(range(size)), (None,), "int64", default=True)
    if isinstance(body, dict) and body.keys() == {"range"}:
        if body["range"] != size:
            raise ValueError("an index has another length than its data")
        return Index(tuple(range(size)), (None,), "int64", default=True)
    names: tuple[Any, ...] = (None,)
    dtype = None
    if isinstance(body, dict):
        _keys(body, {"labels"}, {"names", "dtype"})
        names = tuple(_list(body.get("names", [None]), depth))
        dtype = _dtype(body.get("dtype"))
        body = body["labels"]
    labels = tuple(_list(body, depth))
    if len(labels) != size:
        raise ValueError("an index has another length than its data")
    return Index(labels, names, dtype)


def _decode_series(body: Any, depth: int) -> Series:
    _keys(body, {"data"}, {"name", "dtype", "index"})
    items = tuple(_list(body["data"], depth))
    return Series(
        _decode(body.get("name"), depth + 1),
        _dtype(body.get("dtype")),
        _decode_labels(body.get("index"), len(items), depth),
        items,
    )


def _decode_frame(body: Any, depth: int) -> Frame:
    _keys(body, {"columns", "data"}, {"index", "dtypes"})
    columns = body["columns"]
    if isinstance(columns, dict) and columns.keys() == {"range"}:
        if type(columns["range"]) is not int or not 0 <= columns["range"] <= 1000:
            raise ValueError("a data frame has at most 1,000 columns")
        width = columns["range"]
    else:
        width = len(columns["labels"] if isinstance(columns, dict) else columns)
    rows = [_list(row, depth + 1) for row in _rows(body["data"])]
    if any(len(row) != width for row in rows):
        raise ValueError("a row of a data frame has another length than its columns")
    dtypes = _frame_dtypes(body.get("dtypes"), columns, width)
    data = tuple(zip(*rows, strict=True)) if rows else ((),) * width
    return Frame(
        _decode_labels(columns, width, depth),
        dtypes,
        _decode_labels(body.get("index"), len(rows), depth),
        data,
    )


def _rows(body: Any) -> list[Any]:
    if not isinstance(body, list):
        raise ValueError("the data of a data frame is a list of rows")
    return body


def _frame_dtypes(body: Any, columns: Any, width: int) -> tuple[str | None, ...]:
    if body is None:
        return (None,) * width
    if isinstance(body, dict) and isinstance(columns, list):
        _keys(body, set(), {c for c in columns if isinstance(c, str)})
        return tuple(_dtype(body.get(c)) if isinstance(c, str) else None for c in columns)
    if not isinstance(body, list) or len(body) != width:
        raise ValueError("dtypes: one per column, or an object by column name")
    return tuple(_dtype(item) for item in body)


def _decode_index(body: Any, depth: int) -> Index:
    names, dtype, labels = body
    return Index(tuple(_list(labels, depth)), _decode(names, depth), _dtype(dtype))


def _decode_opaque(body: Any, depth: int) -> Opaque:
    return Opaque(_as_text(body)[:100])


_DECODERS: dict[str, Any] = {
    "$tuple": lambda body, depth: tuple(_list(body, depth)),
    "$set": lambda body, depth: set(_hashable(_list(body, depth))),
    "$frozenset": lambda body, depth: frozenset(_hashable(_list(body, depth))),
    "$dict": _decode_dict,
    "$int": _decode_int,
    "$float": _decode_float,
    "$complex": _decode_complex,
    "$bytes": _decode_bytes,
    "$datetime": _decode_datetime,
    "$date": _decode_date,
    "$timedelta": _decode_timedelta,
    "$decimal": _decode_decimal,
    "$fraction": _decode_fraction,
    "$na": _decode_na,
    "$type": _decode_type,
    "$range": _decode_range,
    "$deque": lambda body, depth: collections.deque(_list(body, depth)),
    "$scalar": _decode_scalar,
    "$array": _decode_array,
    "$series": _decode_series,
    "$dataframe": _decode_frame,
    "$index": _decode_index,
    "$opaque": _decode_opaque,
}
