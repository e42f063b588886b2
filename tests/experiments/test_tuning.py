import math
import multiprocessing
import os
import signal
from functools import partial
from types import SimpleNamespace

import optuna
import pytest
import torch

from editable_hf.core import EDITORS, Editor
from editable_hf.experiments.tuning import best_trial, build_editor, tune_editor


def step_size(editor):
    """Learning rate of an editor, read off its first step on a gradient of 1."""
    grads = {"x": torch.ones(1, dtype=torch.float64)}
    updates, _ = editor.update(grads, editor.init(grads))
    return -updates["x"].item()


class Valley:
    """Less drawdown with smaller steps, but below 0.01 too few edits succeed."""

    def __init__(self):
        self.calls = []

    def __call__(self, editor):
        rate = step_size(editor)
        self.calls.append(rate)
        return {"drawdown": rate, "success_rate": 1.0 if rate >= 0.01 else 0.5}


def test_smallest_drawdown_among_the_reliable(tmp_path):
    measure = Valley()
    result = tune_editor(measure, "gd", storage=tmp_path / "s.db", study_name="a", num_trials=25)
    assert result.num_trials == len(measure.calls) == 25 and result.feasible and result.success_rate == 1
    assert result.drawdown == pytest.approx(min(rate for rate in measure.calls if rate >= 0.01))
    assert result.hyperparameters["learning_rate"] == pytest.approx(result.drawdown)
    assert 0.01 <= result.drawdown < 0.05  # of a range from 1e-5 to 1: the constraint is learned


def test_all_hyperparameters_are_tuned(tmp_path):
    result = tune_editor(
        lambda editor: {"drawdown": 0.1, "success_rate": 1.0},
        "adam",
        storage=tmp_path / "s.db",
        study_name="a",
        num_trials=2,
    )
    assert set(result.hyperparameters) == {"learning_rate", "beta1", "beta2"}
    assert 0.1 <= result.hyperparameters["beta1"] <= 1


def slower(editor, factor, offset=0.0):
    """Each step `factor` times as long, and `offset` shorter."""

    def update(grads, state):
        updates, state = editor.update(grads, state)
        return {name: factor * update + offset for name, update in updates.items()}, state

    return Editor(editor.init, update)


def test_arguments_of_what_is_around_the_editor_are_tuned_with_it(tmp_path):
    rates = []

    def measure(editor):
        rates.append(step_size(editor))
        return {"drawdown": abs(rates[-1] - 1e-4), "success_rate": 1.0}

    options = {"storage": tmp_path / "s.db", "study_name": "a", "num_trials": 8}
    bounds = {"factor": (1e-3, 1e-1), "offset": (1e-9, 1e-8)}
    result = tune_editor(measure, "momentum", wrap=slower, bounds=bounds, **options)
    found = result.hyperparameters
    assert set(found) == {"learning_rate", "mu", "factor", "offset"}
    assert 1e-3 <= found["factor"] <= 1e-1 and 1e-9 <= found["offset"] <= 1e-8
    rate = found["learning_rate"] * found["factor"] - found["offset"]
    assert rate == pytest.approx(rates[[abs(each - 1e-4) for each in rates].index(result.drawdown)])
    assert step_size(build_editor("momentum", found, slower)) == pytest.approx(rate)

    study = optuna.load_study(study_name="a", storage=f"sqlite:///{options['storage']}")
    distributions = study.trials[0].distributions
    assert distributions == {
        "learning_rate": optuna.distributions.FloatDistribution(1e-5, 1.0, log=True),
        "mu": optuna.distributions.FloatDistribution(0.0, 1.0),
        "factor": optuna.distributions.FloatDistribution(1e-3, 1e-1, log=True),
        "offset": optuna.distributions.FloatDistribution(1e-9, 1e-8, log=True),
    }


def test_wrapper_without_bounds_of_its_own(tmp_path):
    rates = []

    def measure(editor):
        rates.append(step_size(editor))
        return {"drawdown": rates[-1], "success_rate": 1.0}

    options = {"storage": tmp_path / "s.db", "study_name": "a", "num_trials": 2}
    found = tune_editor(measure, "gd", wrap=partial(slower, factor=0.5), **options).hyperparameters
    assert list(found) == ["learning_rate"] and min(rates) == pytest.approx(found["learning_rate"] / 2)


@pytest.mark.parametrize("name", EDITORS)
def test_editor_is_built_from_its_hyperparameters(name):
    values = {**EDITORS[name].defaults, "learning_rate": 0.25}
    assert step_size(build_editor(name, values)) == pytest.approx(0.25, rel=1e-5)
    assert step_size(build_editor(name, {**values, "factor": 0.5}, slower)) == pytest.approx(0.125, rel=1e-5)
    with pytest.raises(ValueError, match="has no hyperparameter 'factor'"):
        build_editor(name, {**values, "factor": 0.5})


def test_killed_study_continues_without_repeating_itself(tmp_path):
    measure, options = Valley(), {"storage": tmp_path / "s.db", "study_name": "a"}

    def killed(editor):
        if len(measure.calls) == 3:
            raise KeyboardInterrupt
        return measure(editor)

    with pytest.raises(KeyboardInterrupt):
        tune_editor(killed, "gd", num_trials=6, **options)
    assert tune_editor(measure, "gd", num_trials=6, **options).num_trials == 6
    assert len(measure.calls) == len(set(measure.calls)) == 6
    complete = tune_editor(None, "gd", num_trials=6, **options)  # nothing is measured
    assert complete.num_trials == 6
    assert tune_editor(measure, "gd", num_trials=1, **{**options, "study_name": "b"}).num_trials == 1


@pytest.mark.slow
def test_killed_study_ends_as_an_undisturbed_one(tmp_path):
    options = {"editor": "momentum", "num_trials": 12, "seed": 3, "study_name": "a"}
    whole = Valley()
    expected = tune_editor(whole, storage=tmp_path / "whole.db", **options)

    def tune_until(trial):
        """In another process, which is killed within a trial: that is marked as running for ever."""
        measure = Valley()

        def killed(editor):
            if len(measure.calls) == trial:
                os.kill(os.getpid(), signal.SIGKILL)
            return measure(editor)

        tune_editor(killed, storage=tmp_path / "s.db", **options)

    # Within the first trials, which are random, and twice within the same of those that depend on earlier ones.
    for trial in (2, 6, 0):
        other = multiprocessing.get_context("fork").Process(target=tune_until, args=(trial,))
        other.start()
        other.join(60)
        assert other.exitcode == -signal.SIGKILL
    rest = Valley()
    assert tune_editor(rest, storage=tmp_path / "s.db", **options) == expected
    assert rest.calls == whole.calls[8:]
    study = optuna.load_study(study_name="a", storage=f"sqlite:///{tmp_path}/s.db")
    states = [trial.state.name for trial in study.trials]
    assert states.count("RUNNING") == 3 and states.count("COMPLETE") == 12


def test_trial_without_a_number_is_a_bad_one(tmp_path):
    drawdowns = iter([math.nan, 0.2, math.nan])
    result = tune_editor(
        lambda editor: {"drawdown": next(drawdowns), "success_rate": 1.0},
        "gd",
        storage=tmp_path / "s.db",
        study_name="a",
        num_trials=3,
    )
    assert (result.drawdown, result.num_trials) == (0.2, 3)


def test_most_reliable_where_none_is_reliable_enough():
    trials = [
        SimpleNamespace(params={"learning_rate": rate}, value=value, user_attrs={"success_rate": success})
        for rate, value, success in [(1, 0.1, 0.3), (2, 0.4, 0.9), (3, 0.2, 0.9), (4, float("nan"), 0.9)]
    ]
    result = best_trial(trials, 0.95)
    assert result.hyperparameters == {"learning_rate": 3} and not result.feasible
    assert best_trial(trials, 0.2).hyperparameters == {"learning_rate": 1}


def test_unknown_editor(tmp_path):
    with pytest.raises(ValueError, match="Unknown editor 'sgd'. Choose one of: gd, "):
        tune_editor(Valley(), "sgd", storage=tmp_path / "s.db", study_name="a")


def test_without_optuna(tmp_path, monkeypatch):
    monkeypatch.setattr("editable_hf.versions.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "editable_hf\[vision\]"'):
        tune_editor(Valley(), "gd", storage=tmp_path / "s.db", study_name="a")
