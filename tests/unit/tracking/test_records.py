import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name, _validate_param_name, _validate_tag_name

from ray_distill.tracking.records import (
    MAX_PARAM,
    clean_name,
    clean_tags,
    flatten,
    one_line,
    shorten,
    split_metrics,
    split_params,
)


@given(st.text(max_size=300))
def test_any_text_becomes_a_name_that_mlflow_accepts(name: str) -> None:
    """MLflow's own validation passes for params, metrics and tags, whatever the name was."""
    cleaned = clean_name(name)
    for validate in (_validate_param_name, _validate_metric_name, _validate_tag_name):
        validate(cleaned)
    assert len(cleaned) <= 250


@pytest.mark.parametrize("name", ["loss/soft", "student.accuracy", "kl_from_teacher", "latency_ms p95", "a:b"])
def test_a_good_name_stays(name: str) -> None:
    """Names MLflow accepts are not touched."""
    assert clean_name(name) == name


def test_long_names_that_differ_at_the_end_stay_different() -> None:
    """Cutting a name keeps a digest of the whole."""
    assert clean_name("x" * 300 + "a") != clean_name("x" * 300 + "b")


def test_nested_settings_flatten_with_dots() -> None:
    """Mappings nest, everything else is a value; an empty mapping is a value too."""
    found = flatten({"a": {"b": {"c": 1}, "d": None}, "e": [1, "x"], "f": {}})
    assert found == {"a.b.c": "1", "a.d": "None", "e": '[1, "x"]', "f": "{}"}


def test_a_long_value_is_cut_and_says_so() -> None:
    """What is cut away is named by length and digest, and two long values stay distinguishable."""
    one, two = flatten({"x": "a" * 7000})["x"], flatten({"x": "a" * 6999 + "b"})["x"]
    assert len(one) == MAX_PARAM and "7000 characters, sha256 " in one
    assert one != two
    assert shorten("short", 10) == "short"
    assert len(clean_tags({"t": "y" * 9000})["t"]) == 8000


def test_only_finite_numbers_are_metrics() -> None:
    """NaN, infinities and None are tags that name the metric."""
    finite, absent = split_metrics({"a": 1, "b": math.nan, "c": math.inf, "d": None})
    assert finite == {"a": 1.0}
    assert absent == {"unmeasured.b": "nan", "unmeasured.c": "inf", "unmeasured.d": "nan"}


def test_a_param_set_twice_is_compared() -> None:
    """The same value again is nothing new; another value is a conflict that shows both."""
    fresh, conflicts = split_params({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "9"})
    assert fresh == {"c": "3"}
    assert conflicts == {"param_conflict.b": "2 (first recorded: 9)"}


def test_an_error_fits_on_one_line() -> None:
    """Line breaks go, the type stays."""
    assert one_line(ValueError("two\nlines")) == "ValueError: two lines"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
