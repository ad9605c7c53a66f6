"""Thinned curves and series: bounded, faithful, the same however they are fed."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastcyclegan.runs.report.thinning import Curve, spread

VALUES = st.lists(st.one_of(st.none(), st.integers(-1000, 1000).map(float)), max_size=200)


@given(values=VALUES, limit=st.sampled_from([2, 4, 10]))
def test_a_curve_is_bounded_and_counts_every_value_once(values, limit):
    curve = Curve(limit)
    for i, value in enumerate(values):
        curve.add(10 * i, value)
        assert len(curve.points) <= limit
    points, finite = curve.points, [v for v in values if v is not None]
    assert sum(p.rows for p in points) == len(values)
    assert len({p.rows for p in points[:-1]}) <= 1
    assert sum(p.counted for p in points) == len(finite)
    assert math.fsum(p.total for p in points) == sum(finite)
    assert sum(p.steps for p in points) == 10 * sum(range(len(values)))
    assert [p.step for p in points] == sorted(p.step for p in points)
    seen = [p for p in points if p.counted]
    assert min((p.low for p in seen), default=None) == min(finite, default=None)
    assert max((p.high for p in seen), default=None) == max(finite, default=None)
    assert all(p.low <= p.mean <= p.high for p in seen)
    assert curve.last == (finite[-1] if finite else None)


def test_what_is_few_is_kept_as_it_is():
    curve = Curve(1000)
    for step in range(999):
        curve.add(step, step / 7)
    assert [(p.step, p.mean) for p in curve.points] == [(s, s / 7) for s in range(999)]
    curve.add(999, 1.0)
    assert len(curve.points) == 500 and curve.points[0].mean == pytest.approx(1 / 14)


def test_only_values_that_are_not_finite_leave_a_gap():
    curve = Curve(4)
    for step, value in enumerate([1.0, 3.0, None, None]):
        curve.add(step, value)
    assert [p.mean for p in curve.points] == [2.0, None]


@given(st.integers(0, 500), st.sampled_from([2, 3, 10, 40]))
def test_spread_keeps_the_first_and_the_last_evenly(count, limit):
    kept = spread(range(count), limit)
    assert len(kept) <= limit and (count <= limit) == (len(kept) == count)
    if count:
        assert kept[0] == 0 and kept[-1] == count - 1 and len(kept) > min(count, limit) / 2 - 1
        gaps = {b - a for a, b in pairwise(kept[:-1])}
        assert len(gaps) <= 1


def test_what_is_kept_of_more_was_kept_before_but_for_the_last():
    for count in range(2, 300):
        before, now = spread(range(count - 1), 40), spread(range(count), 40)
        assert set(now[:-1]) <= set(before)
