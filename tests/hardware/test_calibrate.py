"""Predictions against the clock: what is fitted, what the errors are of, and what lies beyond them."""

from dataclasses import astuple, replace

import numpy as np
import pytest

from grow.kernels import KernelCase
from hardware.calibrate import Case, Comparison, calibrate, cases, compare, fit, predicted_s, summary
from hardware.calibrate.cases import NETWORKS, job, mlp, part_of
from hardware.execute.measure import Job
from hardware.partition import crossing_units
from hardware.profile.calibration import Coefficients
from hardware.profile.key import key_of
from hardware.trust import beyond, quantities
from tests.hardware.test_profile import made_up_profile

PROFILE = made_up_profile(2)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "small", lambda: mlp(12, 40, 40, 40, 10))  # type: ignore[index]


def small(strategy: str, density: float = 1.0, batch: int = 64, crossing: float = 1.0) -> Case:
    return Case("small", density, batch, strategy, 1 if strategy == "single" else 2, crossing)


def test_at_least_thirty_cases_are_held_out_and_none_of_them_is_fitted_to() -> None:
    fitted, held = cases(2)
    assert len(set(held)) == len(held) >= 30
    assert not {case.network for case in fitted} & {case.network for case in held}
    assert {case.strategy for case in held} == {case.strategy for case in fitted} == {"single", "data", "model"}
    assert {case.devices for case in held} == {1, 2}
    assert {case.devices for case in cases(1)[1]} == {1}
    assert all(case.network in NETWORKS for case in (*fitted, *held))


@pytest.mark.parametrize(("crossing", "expected"), [(0.0, 0), (0.25, 20), (1.0, 80)])
def test_only_the_chosen_share_of_every_hidden_space_crosses(crossing: float, expected: int) -> None:
    case = small("model", 1.0, 8, crossing)
    partition = case.partition
    assert partition is not None
    assert crossing_units(case.work, partition) == expected  # of two spaces with a hidden reader


def test_every_rank_draws_the_same_network_and_batch() -> None:
    first, second = (job(small("model", 0.3, 8, 0.5).text) for _ in range(2))
    assert isinstance(first, Job)
    for one, other in zip(first.network.topology.layers, second.network.topology.layers, strict=True):
        assert one.count == other.count < 0.5 * one.possible
        assert np.array_equal(one.positions(), other.positions())
    assert (first.inputs == second.inputs).all()
    assert (first.targets == second.targets).all()


def test_parts_are_consecutive_and_even() -> None:
    assert part_of(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_the_coefficients_of_a_made_up_machine_are_found_again() -> None:
    truth = Coefficients(alone=1.1, together=1.4, halo=2.0, sum=0.8, call_s=1e-4)
    chosen = [
        *(small("single", density, batch) for density in (1.0, 0.1) for batch in (64, 512)),
        *(small("data", density, batch) for density in (1.0, 0.1) for batch in (32, 2048)),
        *(small("model", 1.0, batch, crossing) for batch in (32, 2048) for crossing in (0.1, 1.0)),
    ]
    slower = replace(PROFILE, coefficients=truth, step_overhead_s=1e-6)
    compared = [Comparison(case, 0.0, predicted_s(slower, case), 0.0, 0.0) for case in chosen]
    found = fit(replace(PROFILE, step_overhead_s=1e-6), compared)
    assert astuple(found) == pytest.approx(astuple(truth), rel=0.1)


def test_what_no_case_tells_stays_as_it_was_measured() -> None:
    case = small("single")
    compared = [Comparison(case, 0.0, 1.3 * predicted_s(PROFILE, case), 0.0, 0.0)]
    found = fit(PROFILE, compared)
    assert (found.together, found.halo, found.sum) == pytest.approx((1.0, 1.0, 1.0))
    assert found.call_s < 5e-5
    assert found.alone > 1.01


def test_the_summary_of_three_comparisons_is_what_one_sees() -> None:
    chosen = [small("single", batch=batch) for batch in (16, 32, 64)]
    compared = [Comparison(case, p, m, m, m) for case, p, m in zip(chosen, (1.1, 1.8, 4.0), (1.0, 2.0, 3.9), strict=True)]
    found = summary(compared)
    assert (found.cases, found.kendall_tau) == (3, pytest.approx(1.0))
    assert found.median_error == pytest.approx(0.1)
    assert found.worst_error == pytest.approx(0.1)
    assert (found.low["batch"], found.high["batch"], found.low["layers"], found.low["taps"]) == (16, 64, 4, 1)


def test_a_prediction_beyond_the_calibrated_range_says_so() -> None:
    work = small("single").work
    compared = [Comparison(small("model", batch=batch), 1.0, 1.0, 1.0, 1.0) for batch in (32, 64)]
    profile = replace(PROFILE, calibration=summary(compared))
    assert beyond(profile, work, "units", 64, 2) == beyond(profile, work, "model", 64, 2) == []
    assert beyond(profile, work, "data", 1024, 2) == ["strategy is 'data', calibrated model, units", "batch is 1024, calibrated 32 to 64"]
    assert "not calibrated" in beyond(PROFILE, work, "single", 64, 1)[0]
    assert quantities(work, 64, 1)["connections"] == 12 * 40 + 2 * 40 * 40 + 40 * 10


def test_another_machine_is_not_calibrated_here() -> None:
    with pytest.raises(ValueError, match=r"profile is of 2 x cpu \(nowhere\), but must be of this machine \(host was 'nowhere'"):
        calibrate(PROFILE)


def test_the_profile_chooses_the_kernel_that_it_measured_to_be_the_fastest() -> None:
    thin, thick, whole = (KernelCase(100, 100, density, 64, "cpu") for density in (0.05, 0.5, 1.0))
    assert [PROFILE.kernel(case) for case in (thin, thick, whole)] == ["csr", "dense", "dense"]


@pytest.mark.slow
def test_cases_are_timed_in_groups_and_predicted_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardware.calibrate.TOGETHER", 2)
    here = replace(PROFILE, key=key_of(PROFILE.devices))
    chosen = [Case("mlp-256x2", 0.3, 32, strategy, count) for strategy, count in (("single", 1), ("data", 2), ("model", 2))]
    compared = compare(here, chosen, seconds_per_case=0.1, rounds=3)
    assert [found.case for found in compared] == chosen
    for found in compared:
        assert 0 < found.lowest_s <= found.measured_s <= found.highest_s
        assert found.ratio == found.predicted_s / found.measured_s > 0
