"""Cost curves: what is fitted to points on a curve is that curve."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynclm.adapters.models.local.costs import Costs, Curve, fit

LENGTHS = [16 * 2**n for n in range(9)]

terms = st.one_of(st.just(0.0), st.floats(1e-4, 1e3))
curves = st.builds(Curve, terms, st.floats(1e-4, 10.0), st.one_of(st.just(0.0), st.floats(1e-6, 1e-2)))


@given(curves)
def test_points_on_a_curve_give_that_curve(curve: Curve) -> None:
    found = fit([(tokens, curve(tokens)) for tokens in LENGTHS], 2)
    for tokens in (16, 100, 1000, 4096):
        assert found(tokens) == pytest.approx(curve(tokens), rel=1e-4)


@given(
    st.lists(st.tuples(st.integers(1, 100_000), st.floats(1e-4, 1e6)), min_size=1, max_size=12), st.sampled_from([1, 2])
)
def test_whatever_was_measured_no_curve_falls_or_begins_below_0(points: list[tuple[int, float]], degree: int) -> None:
    found = fit(points, degree)
    assert min(found.fixed, found.each, found.square) >= 0
    assert max(found.fixed, found.each, found.square) > 0
    assert degree == 2 or found.square == 0
    assert all(math.isfinite(found(tokens)) for tokens in (1, 1_000_000))


@given(curves, st.lists(st.floats(0.97, 1.03), min_size=9, max_size=9))
def test_what_errs_by_some_per_cent_gives_a_curve_that_does(curve: Curve, errors: list[float]) -> None:
    points = [(tokens, curve(tokens) * error) for tokens, error in zip(LENGTHS, errors, strict=True)]
    found = fit(points, 2)
    off = sum((found(tokens) / cost - 1) ** 2 for tokens, cost in points)
    assert off <= sum((curve(tokens) / cost - 1) ** 2 for tokens, cost in points) + 1e-9, "none is closer"


def test_a_single_point_gives_so_much_a_token() -> None:
    assert fit([(100, 50.0)], 2) == Curve(0.0, pytest.approx(0.5), 0.0)
    assert fit([(100, 50.0), (100, 50.0)], 1) == Curve(0.0, pytest.approx(0.5), 0.0)


@pytest.mark.parametrize("points", [[], [(0, 1.0)], [(1, 0.0)], [(1, math.nan)], [(1, math.inf)]])
def test_what_is_no_measurement_is_refused(points: list[tuple[int, float]]) -> None:
    with pytest.raises(ValueError, match="a curve is fitted"):
        fit(points, 2)


def test_they_can_be_written_down() -> None:
    costs = Costs(Curve(1.0, 0.5), Curve(2.0, 0.25, 0.125))
    assert msgspec.json.decode(msgspec.json.encode(costs), type=Costs) == costs
    assert costs.recompute(4) == 2.0 + 1.0 + 2.0
