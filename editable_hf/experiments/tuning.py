"""Hyperparameters of an editor: as local as possible, and reliable enough (section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from editable_hf.core.editors import EDITORS, Editor, LearnableEditor
from editable_hf.launch import launched_processes
from editable_hf.versions import require_extra

# Learning rates that are tried. The first two scale the gradient of l_e, the others set the size of a step.
_LEARNING_RATES = {
    "gd": (1e-5, 1.0),
    "momentum": (1e-5, 1.0),
    "scaled_gd": (1e-3, 10.0),
    "rprop": (1e-5, 1e-1),
    "rmsprop": (1e-5, 1e-1),
    "adam": (1e-5, 1e-1),
}


class TunedEditor(NamedTuple):
    """The best trial of a study.

    Attributes:
        hyperparameters: Of the editor and of what is around it, by name; see [`build_editor`].
        drawdown: On the tuning data, a fraction.
        success_rate: Same.
        num_trials: Trials that were completed.
        feasible: Whether the success rate is as high as asked for.
    """

    hyperparameters: dict[str, float]
    drawdown: float
    success_rate: float
    num_trials: int
    feasible: bool


def tune_editor(
    measure: Callable[[Editor], Mapping[str, Any]],
    editor: str,
    *,
    storage: Path,
    study_name: str,
    num_trials: int = 30,
    min_success_rate: float = 0.95,
    seed: int = 0,
    wrap: Callable[..., Editor] | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
) -> TunedEditor:
    """Finds the hyperparameters with the smallest drawdown among those with which enough edits succeed.

    A killed study is continued where it was: call again, and it ends as it would have without the kill. One run at a
    time may work on a study. Its processes all call this; they measure the same trial together, and `measure` can
    share its edits among them.

    Args:
        measure: Gives `drawdown` and `success_rate` of an editor (an evaluator's `summarize` of its `evaluate`), with
            edits and on images that are not those reported on. Not called for a study that is complete.
        editor: A key of `EDITORS`.
        storage: SQLite file for the studies, made if missing.
        study_name: Name of this study within the file; another one for anything that `measure` depends on.
        num_trials: Trials that are completed when this returns, those before a kill among them.
        min_success_rate: 95% in the paper.
        seed: Of the sampler.
        wrap: What is measured is `wrap(editor, **values)` in place of the editor; `partial(ewc, fisher=fisher)`, say.
        bounds: Lowest and highest value of each argument of `wrap`, searched on a logarithmic scale with the
            editor's own hyperparameters; `{"weight": EWC_WEIGHTS}`, say.

    Raises:
        ImportError: Without optuna, naming the extra.
        ValueError: For an unknown editor.
    """
    if editor not in EDITORS:
        raise ValueError(f"Unknown editor {editor!r}. Choose one of: {', '.join(EDITORS)}.")
    require_extra("optuna", "vision")
    import optuna

    def measure_values(values: dict[str, float]) -> Mapping[str, Any]:
        return measure(build_editor(editor, values, wrap))

    if not launched_processes().is_main_process:
        return _follow(measure_values)

    def objective(trial: optuna.Trial) -> float:
        row = measure_values(broadcast_object_list([_suggest(trial, editor, bounds or {})])[0])
        trial.set_user_attr("success_rate", row["success_rate"])
        trial.set_constraint("success_rate", min_success_rate - row["success_rate"])  # feasible at 0 or less
        # Optuna takes infinity for a result, but not NaN.
        return math.inf if math.isnan(row["drawdown"]) else row["drawdown"]

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        trials = _run_study(objective, f"sqlite:///{storage}", study_name, num_trials, seed)
    finally:
        optuna.logging.set_verbosity(level)
    return broadcast_object_list([best_trial(trials, min_success_rate)])[0]


def _suggest(trial: Any, editor: str, further: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    values = {"learning_rate": trial.suggest_float("learning_rate", *_LEARNING_RATES[editor], log=True)}
    values |= {name: trial.suggest_float(name, *bounds) for name, bounds in EDITORS[editor].bounds.items()}
    return values | {name: trial.suggest_float(name, *ends, log=True) for name, ends in further.items()}


def _follow(measure: Callable[[dict[str, float]], Any]) -> TunedEditor:
    """What all processes but the main one do: they measure what it proposes, until it sends the best trial."""
    while not isinstance(message := broadcast_object_list([None])[0], TunedEditor):
        measure(message)
    return message


def build_editor(
    editor: str, hyperparameters: Mapping[str, float], wrap: Callable[..., Editor] | None = None
) -> Editor:
    """The editor that [`tune_editor`] measured with some hyperparameters.

    Args:
        editor: A key of `EDITORS`.
        hyperparameters: A [`TunedEditor`]'s; those that are not the editor's own are given to `wrap`.
        wrap: What `tune_editor` was given.

    Raises:
        ValueError: For a hyperparameter that the editor does not have, where there is no `wrap`.
    """
    own = {name: value for name, value in hyperparameters.items() if wrap is None or name in EDITORS[editor].defaults}
    built = LearnableEditor(editor, learn_learning_rate=False, learn_decays=False, **own).build()
    if wrap is None:
        return built
    return wrap(built, **{name: value for name, value in hyperparameters.items() if name not in own})


def _run_study(objective: Callable[[Any], float], url: str, name: str, num_trials: int, seed: int) -> list[Any]:
    """The complete trials of a study, at least `num_trials`."""
    import optuna
    from optuna.trial import TrialState

    study = optuna.create_study(storage=url, study_name=name, load_if_exists=True)
    complete = study.get_trials(states=[TrialState.COMPLETE])
    with tqdm(total=num_trials, initial=len(complete), desc="trials") as bar:
        while len(complete) < num_trials:
            # What is suggested depends on the complete trials alone, not on one that a kill left running for ever.
            options = {"n_startup_trials": 6, "seed": seed + len(complete), "constant_liar": False}
            study.sampler = optuna.samplers.TPESampler(**options)
            study.optimize(objective, n_trials=1)
            complete = study.get_trials(states=[TrialState.COMPLETE])
            bar.update()
    return complete


def best_trial(trials: Sequence[Any], min_success_rate: float) -> TunedEditor:
    """The smallest drawdown among the reliable trials; without any, the most reliable one."""

    def rank(trial) -> tuple[float, float]:
        missing = max(0.0, min_success_rate - trial.user_attrs["success_rate"])
        return missing, trial.value if math.isfinite(trial.value) else math.inf

    best = min(trials, key=rank)
    success_rate = best.user_attrs["success_rate"]
    return TunedEditor(dict(best.params), best.value, success_rate, len(trials), success_rate >= min_success_rate)
