"""The JSON form of values: round trip, exactness, budgets, hostile input."""

import collections
import contextlib
import datetime
import decimal
import fractions
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox import values
from sandbox.values import Array, Frame, Missing, Opaque, Scalar, Series, decode, encode, revive

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.complex_numbers(allow_nan=False)
    | st.dates()
    | st.datetimes()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.fractions()
)
hashables = st.integers() | st.text(max_size=5) | st.booleans() | st.floats(allow_nan=False)
plain = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=4) | hashables, inner, max_size=4)
        | st.sets(hashables, max_size=4)
        | st.frozensets(hashables, max_size=4)
    ),
    max_leaves=20,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(sorted(values._DECODERS)) | st.text(max_size=5), inner, max_size=3
        )
    ),
    max_leaves=20,
)


def typed(value: Any) -> Any:
    """A value beside its types at every depth: 1, 1.0 and True stay apart."""
    if isinstance(value, (list, tuple)):
        return (type(value), [typed(item) for item in value])
    if isinstance(value, dict):
        return (dict, [(typed(k), typed(v)) for k, v in value.items()])
    if isinstance(value, (set, frozenset)):
        return (type(value), {(type(item), item) for item in value})
    return (type(value), repr(value) if isinstance(value, float) else value)


@given(plain)
def test_plain_values_survive_the_wire(value: Any) -> None:
    form = json.loads(json.dumps(encode(value)))
    assert typed(decode(form)) == typed(value)


@given(json_values)
@settings(max_examples=300)
def test_decoding_arbitrary_json_raises_nothing_but_value_error(form: Any) -> None:
    with contextlib.suppress(ValueError):
        value = decode(form)
        again = json.loads(json.dumps(encode(value)))
        assert typed(decode(again)) == typed(value), "what is let in can go out"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -0.0, 5e-324])
def test_special_floats_survive(number: float) -> None:
    assert repr(decode(json.loads(json.dumps(encode(number))))) == repr(number)


def test_a_subclass_is_opaque_and_none_of_its_methods_is_called() -> None:
    class Liar(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            raise AssertionError("called")

        __len__ = __eq__ = __repr__ = __hash__ = __iter__  # type: ignore[assignment]

    class Meta(type):
        @property
        def __name__(cls) -> str:
            raise AssertionError("called")

    class Odd(metaclass=Meta):
        pass

    assert encode(Liar()) == {"$opaque": "Liar"}
    assert encode([Odd()]) == [{"$opaque": "Odd"}]


def test_opaque_equals_nothing_not_even_itself() -> None:
    value = Opaque("thing")
    assert value != value
    assert value not in [Opaque("thing")]
    assert values.is_opaque({"a": [1, (value,)]})


@pytest.mark.parametrize(
    "value",
    [
        list(range(values.MAX_NODES + 1)),
        "x" * (values.MAX_TEXT + 1),
        1 << (values.MAX_INT_BITS + 8),
        [["x" * 40_000] * 30],
    ],
    ids=["nodes", "text", "digits", "all text"],
)
def test_what_exceeds_the_budget_is_opaque_as_a_whole(value: Any) -> None:
    assert set(encode(value)) == {"$opaque"}
    with pytest.raises(ValueError, match="cannot be written"):
        encode(value, strict=True)


def test_deep_nesting_is_opaque_and_too_deep_forms_are_refused() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    assert encode(value) == {"$opaque": "list"}
    form: Any = 1
    for _ in range(60):
        form = [form]
    with pytest.raises(ValueError, match="deep"):
        decode(form)


def test_colliding_numbers_are_refused_quickly() -> None:
    items = [n * (2**61 - 1) for n in range(1, 30_000)]
    form = {"$set": [{"$int": hex(item)} for item in items]}
    with pytest.raises(ValueError, match="colliding"):
        decode(form)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"$nothing": 1}, "unknown tag"),
        ({"$int": "12"}, "hexadecimal"),
        ({"$int": "0x" + "f" * 30_000}, "hexadecimal"),
        ({"$float": "1.5"}, "nan"),
        ({"$dict": [[1]]}, "pair"),
        ({"$set": [[1]]}, "malformed"),
        ({"$array": {"shape": [2, 2], "data": [1]}}, "disagree"),
        ({"$array": {"data": [[1, 2], [3]]}}, "different lengths"),
        ({"$dataframe": {"columns": ["a"], "data": [[1, 2]]}}, "length"),
        ({"$dataframe": {"columns": ["a"], "rows": []}}, "missing"),
        ({"$dataframe": {"columns": {"range": 10**9}, "data": []}}, "1,000"),
        ({"$series": {"data": [1], "index": [1, 2]}}, "length"),
        ({"$type": "eval"}, "built-in"),
    ],
)
def test_malformed_forms_say_what_is_wrong(form: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode(form)


def test_relatives_of_dict_cross_as_dicts() -> None:
    counter = collections.Counter("aab")
    assert decode(encode(counter)) == {"a": 2, "b": 1}
    assert type(decode(encode(collections.defaultdict(int, {1: 2})))) is dict
    assert decode(encode(collections.deque([1, 2]))) == collections.deque([1, 2])
    assert decode(encode(range(1, 9, 2))) == range(1, 9, 2)
    assert decode(encode(int)) is int


def test_other_plain_types_survive() -> None:
    for value in (
        datetime.timedelta(-1, 5, 7),
        decimal.Decimal("1.50"),
        fractions.Fraction(1, 3),
        {"$odd": 1, "plain": 2},
        {1: "a", (1, 2): "b"},
    ):
        assert decode(encode(value)) == value


def test_numpy_values_keep_their_dtype_and_shape() -> None:
    np = pytest.importorskip("numpy")
    for array in (
        np.arange(6, dtype="int16").reshape(2, 3),
        np.array([1.5, np.nan]),
        np.array(["a", "bc"]),
        np.array(["2024-01-02"], dtype="datetime64[D]"),
        np.zeros((0, 3)),
        np.array([True, False]),
    ):
        back = revive(decode(json.loads(json.dumps(encode(array)))))
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(back, array)
    matrix = np.array([[1, 2], [3, 4]]).view(np.matrix)
    assert type(revive(decode(encode(matrix)))) is np.matrix
    assert decode(encode(matrix)).nested() == [[1, 2], [3, 4]]
    assert revive(decode(encode({np.int64(1): {np.int64(2)}}))) == {1: {2}}
    assert decode(encode(np.float32(1.5))) == Scalar("float32", 1.5)
    assert decode(encode(np.array([[1, 2], [3, 4]]))).nested() == [[1, 2], [3, 4]]


def test_an_array_of_objects_is_looked_into_with_exact_types() -> None:
    np = pytest.importorskip("numpy")

    class Yes:
        def __eq__(self, other: object) -> bool:
            return True

    array = np.empty(2, dtype=object)
    array[:] = [1, Yes()]
    decoded = decode(encode(array))
    assert isinstance(decoded, Array)
    assert values.is_opaque(decoded)


def test_a_large_array_is_whole_or_opaque() -> None:
    np = pytest.importorskip("numpy")
    assert len(decode(encode(np.arange(20_000))).items) == 20_000
    assert encode(np.zeros(values.MAX_CELLS + 1)) == {"$opaque": "ndarray"}


def test_frames_and_series_survive() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(
        {"k": ["a", None, "b"], "v": [1, 2, 3], "t": pd.date_range("2024-01-01", periods=3)},
        index=[10, 20, 30],
    )
    frame["c"] = frame["k"].astype("category")
    decoded = decode(json.loads(json.dumps(encode(frame))))
    assert isinstance(decoded, Frame)
    pd.testing.assert_frame_equal(revive(decoded), frame, check_categorical=False)
    series = pd.Series([1.5, 2.5], name="s", index=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]))
    decoded = decode(json.loads(json.dumps(encode(series))))
    assert isinstance(decoded, Series)
    pd.testing.assert_series_equal(revive(decoded), series)
    assert decode(encode(pd.NaT)) == Missing("NaT")
    assert set(encode(pd.DataFrame([[1] * 1001]))) == {"$opaque"}


def test_a_frame_may_be_written_by_hand() -> None:
    form = {"$dataframe": {"columns": ["a", "b"], "data": [[1, "x"]], "dtypes": {"a": "int8"}}}
    decoded = decode(form)
    assert decoded.dtypes == ("int8", None)
    assert decoded.index.default
