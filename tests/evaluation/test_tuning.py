from types import SimpleNamespace

import pytest
import torch

from editable_hf.evaluation import tuning
from editable_hf.evaluation.tuning import best_trial, tune_editor


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
    result = tune_editor(measure, "gd", storage=tmp_path / "s.db", study_name="a", num_trials=25, progress=False)
    assert result.num_trials == len(measure.calls) == 25 and result.feasible and result.success_rate == 1
    assert result.drawdown == pytest.approx(min(rate for rate in measure.calls if rate >= 0.01))
    assert result.hyperparameters["learning_rate"] == pytest.approx(result.drawdown)
    assert 0.01 <= result.drawdown < 0.05  # of a range from 1e-5 to 1: the constraint is learnt


def test_all_hyperparameters_are_tuned(tmp_path):
    result = tune_editor(
        lambda editor: {"drawdown": 0.1, "success_rate": 1.0},
        "adam",
        storage=tmp_path / "s.db",
        study_name="a",
        num_trials=2,
        progress=False,
    )
    assert set(result.hyperparameters) == {"learning_rate", "beta1", "beta2"}
    assert 0.1 <= result.hyperparameters["beta1"] <= 1


def test_killed_study_continues_without_repeating_itself(tmp_path):
    measure, options = Valley(), {"storage": tmp_path / "s.db", "study_name": "a", "progress": False}

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
    monkeypatch.setattr(tuning, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "editable_hf\[vision\]"'):
        tune_editor(Valley(), "gd", storage=tmp_path / "s.db", study_name="a")
