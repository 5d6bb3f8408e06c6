"""Simulated nights have the given truth, and the gate errs in them at most at its level."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from distill.__main__ import app
from distill.errors import DataError
from distill.evaluation.curve import curves
from distill.evaluation.gate import QuantileMap, Rules
from distill.evaluation.simulate import (
    Scenario,
    Shape,
    _noise,
    clopper_pearson,
    prompts_for_power,
    simulate,
    solve_shift,
)

runner = CliRunner(env={"COLUMNS": "120"})

EDGE = Scenario(prompts=200, samples=8, n_from=8, n_to=4, true_d=-1.0)
SHAPES: list[Shape] = ["gaussian", "skewed", "heavy", "discrete"]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_true_difference_is_the_given_multiple_of_delta(shape: Shape) -> None:
    """Drawn anew from the population, far more samples than any night has, without the simulation's own grid."""
    scenario = replace(EDGE, shape=shape, sd_ratio=0.8, true_d=0.5)
    rng = np.random.default_rng(0)

    def noise(samples: int) -> np.ndarray:
        size = (30_000, samples)
        if shape == "skewed":
            return rng.exponential(size=size) - 1
        return rng.standard_t(3, size) / 3**0.5 if shape == "heavy" else rng.standard_normal(size)

    def observed(rewards: np.ndarray) -> np.ndarray:
        return np.rint(rewards) if shape == "discrete" else rewards

    level_P1 = rng.standard_normal((30_000, 1))
    old_PM = observed(level_P1 + noise(8))
    new_PM = observed(level_P1 + solve_shift(scenario) + 0.8 * noise(8))
    old_PM, new_PM = (QuantileMap(old_PM)(rewards) for rewards in (old_PM, new_PM))
    fewer_P, now_P = curves(old_PM, old_PM, [7, 8]).T
    differences_P = curves(new_PM, new_PM, [4])[:, 0] - now_P
    delta = float((now_P - fewer_P).mean())
    standard_error = float(differences_P.std() / 30_000**0.5)
    assert pytest.approx(0.5, abs=4 * standard_error / delta) == differences_P.mean() / delta


@pytest.mark.parametrize("shape", ["gaussian", "discrete"])
def test_at_the_nulls_edge_few_nights_promote(shape: Shape) -> None:
    """5 % of 200 nights is 10; more than 20 has a chance below 0.002. All nights are the same for the same seed."""
    assert simulate(replace(EDGE, prompts=100, shape=shape), 200).promoted <= 20 / 200


def test_better_policies_are_promoted_more_often_and_sooner() -> None:
    outcomes = [simulate(replace(EDGE, true_d=d), 30) for d in (-1.0, 1.0, 4.0)]
    promoted = [outcome.promoted for outcome in outcomes]
    assert sorted(promoted) == promoted
    assert 1.0 == promoted[-1]
    assert outcomes[1].crossed_at is not None
    assert outcomes[2].crossed_at is not None
    assert outcomes[2].crossed_at < outcomes[1].crossed_at


def test_the_same_seed_gives_the_same_nights() -> None:
    scenario = replace(EDGE, prompts=60, true_d=3.0)
    assert simulate(scenario, 30, seed=1) == simulate(scenario, 30, seed=1)
    assert simulate(scenario, 30, seed=1) != simulate(scenario, 30, seed=2)


def test_the_given_level_is_used() -> None:
    scenario = replace(EDGE, prompts=100, true_d=2.0)
    lax, strict = (simulate(scenario, 40, rules=Rules(alpha=alpha)).promoted for alpha in (0.2, 0.002))
    assert lax > strict


def test_the_search_finds_where_the_power_is_reached() -> None:
    scenario = replace(EDGE, prompts=40, true_d=5.0)
    prompts, outcome = prompts_for_power(scenario, 0.8, 25)
    assert outcome == simulate(replace(scenario, prompts=prompts), 25)
    assert outcome.promoted >= 0.8
    assert simulate(replace(scenario, prompts=round(prompts * 0.7)), 25).promoted < 0.8


def test_no_number_of_prompts_reaches_power_at_the_edge() -> None:
    with pytest.raises(DataError, match="no number of prompts"):
        prompts_for_power(EDGE, 0.8, 10)


def test_exact_intervals_are_the_textbooks() -> None:
    assert pytest.approx((0.0, 0.3085), abs=1e-4) == clopper_pearson(0, 10)
    assert pytest.approx((0.6915, 1.0), abs=1e-4) == clopper_pearson(10, 10)
    assert pytest.approx((0.1871, 0.8129), abs=1e-4) == clopper_pearson(5, 10)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"n_to": 8}, "does not hold: 8, 8, 8"),
        ({"n_to": 0}, "does not hold: 0, 8, 8"),
        ({"n_from": 9}, "does not hold: 4, 9, 8"),
        ({"prompts": 0}, "must be positive"),
        ({"sd_ratio": 0.0}, "must be positive"),
        ({"prompt_sd": -1.0}, "must be positive"),
    ],
)
def test_an_impossible_night_is_refused_with_its_reason(wrong: dict[str, float], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        replace(EDGE, **wrong)  # type: ignore[arg-type]


def test_a_difference_beyond_the_scale_is_refused() -> None:
    with pytest.raises(DataError, match="the scale ends before"):
        solve_shift(replace(EDGE, true_d=1000.0))


def test_the_command_prints_json() -> None:
    result = runner.invoke(app, ["simulate", "--nights", "5", "--prompts", "60", "--true-d", "-1", "--json"])
    assert 0 == result.exit_code, result.output
    facts = json.loads(result.stdout)
    assert {"promoted", "low", "high", "nights"} == facts.keys()
    assert 5 == facts["nights"]
    assert 0 <= facts["low"] <= facts["promoted"] <= facts["high"] <= 1


def test_the_command_prints_a_table() -> None:
    result = runner.invoke(
        app, ["simulate", "--nights", "5", "--prompts", "60", "--true-d", "3", "--from", "4", "--to", "2"]
    )
    assert 0 == result.exit_code, result.output
    assert "5 nights: 4 → 2, true E[D] = +3 δ" in result.stdout
    assert re.search(r"promoted\s+│ \d+\.\d% \[", result.stdout)
    assert "of the prompts" in result.stdout


def test_the_command_searches_for_the_prompts_that_a_power_needs() -> None:
    command = ["simulate", "--nights", "10", "--prompts", "40", "--true-d", "8", "--power", "0.8", "--json"]
    result = runner.invoke(app, command)
    assert 0 == result.exit_code, result.output
    facts = json.loads(result.stdout)
    assert {"prompts", "promoted", "low", "high", "nights"} == facts.keys()
    assert facts["promoted"] >= 0.8


def test_bad_input_is_one_line_and_exit_code_two() -> None:
    for arguments in (["--from", "4", "--to", "6"], ["--true-d", "1000", "--prompts", "20"]):
        result = runner.invoke(app, ["simulate", "--nights", "2", *arguments])
        assert 2 == result.exit_code
        assert 1 == len(result.stderr.strip().splitlines())


@pytest.mark.parametrize(
    ("shape", "noise"),
    [
        ("gaussian", [-1.2815515655, 0.0, 1.2815515655]),
        ("discrete", [-1.2815515655, 0.0, 1.2815515655]),
        ("skewed", [-math.log(0.9) - 1, -math.log(0.5) - 1, -math.log(0.1) - 1]),
        ("heavy", [-1.6377443536 / 3**0.5, 0.0, 1.6377443536 / 3**0.5]),
    ],
)
def test_noise_has_mean_zero_and_spread_one_in_every_shape(shape: Shape, noise: list[float]) -> None:
    """At the 10th, 50th and 90th percent of the tables of the normal, the exponential and Student's distribution."""
    found = _noise(replace(EDGE, shape=shape), np.array([0.1, 0.5, 0.9]))
    assert pytest.approx(noise, abs=1e-9) == found.tolist()
    assert np.float64 == found.dtype
