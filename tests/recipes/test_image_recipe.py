from __future__ import annotations

from pathlib import Path

import pytest

from editable_hf import EditableImageTrainingArguments
from editable_hf.experiments.image_recipe import load_config
from editable_hf.experiments.row_methods import build_method

CONFIGS = Path(__file__, "../../../recipes/configs").resolve()
PATHS = sorted(
    path for folder in ("cifar10", "imagenet", "natural_adversarial") for path in (CONFIGS / folder).glob("*.yaml")
)


def test_configs_are_found():
    for folder in ("cifar10", "imagenet", "natural_adversarial"):
        assert {path.stem for path in PATHS if path.parent.name == folder} >= {"demo", "small", "paper"}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}-{path.stem}")
@pytest.mark.parametrize("smoke", [False, True])
def test_every_config_is_valid(path, smoke, tmp_path):
    config = load_config(
        str(path), own_section="adversarial" if path.parent.name == "natural_adversarial" else "figure_2", smoke=smoke
    )
    for row in config.models.values():
        EditableImageTrainingArguments(str(tmp_path), **{**config.training, **row.training, "use_cpu": True})
        assert row.network not in row.compare_to or row.method.name != "gradient"
    assert smoke == config.output_dir.endswith("-smoke")
    steps = {row.training.get("max_steps") for row in config.models.values() if row.train and row.network is None}
    assert len(steps) == 1, "all networks are trained for equally many updates"


def test_paper_config_is_section_4_1():
    config = load_config(str(CONFIGS / "cifar10/paper.yaml"), own_section="figure_2")
    assert config.evaluation.num_edits == 1_000 and config.evaluation.max_steps == 10
    assert (config.training["learning_rate"], config.training["weight_decay"]) == (1e-3, 0.0)
    assert config.model.weights is None and config.pretrain == {}
    editable = config.models["editable c_loc=0.1, RMSProp chain3"]
    assert (editable.training["locality_coef"], editable.layers) == (0.1, ["chain3"])


@pytest.mark.parametrize("name", ["paper", "paper_densenet169"])
def test_paper_config_is_section_4_3(name):
    config = load_config(str(CONFIGS / f"imagenet/{name}.yaml"))
    training = config.training
    assert (training["optim"], training["optim_args"]) == ("sgd", "momentum=0.9")
    assert training["base_loss"] == "distillation" and training["learning_rate"] == 1e-5
    editable = config.models["editable, extra"]
    assert editable.extra == 4096 and editable.training["extra_learning_rate"] == 1e-3


def test_overrides(write):
    path = write("output_dir: a\nseed: 3\nmodel: {weights: x}\npretrain: {max_steps: 5}\nmodels: {a: {}}")
    config = load_config(path, data="folder", seed=0)
    assert (config.seed, config.data.source, config.model.weights) == (0, "folder", "x")
    assert config.pretrain == {"max_steps": 5}
    config = load_config(path, weights="y", output_dir="b", smoke=True)
    assert (config.model.weights, config.pretrain, config.output_dir) == ("y", {}, "b")
    config = load_config(path, own_section="adversarial", natural_adversarial="nae", embedding="inception")
    assert (config.adversarial.source, config.adversarial.embedding) == ("nae", "inception")


def test_rows(write):
    rows = "a: {extra: 16, layers: extra, edit_coef: 1}", "b: {network: a, editor: gd, compare_to: a}"
    first, second = load_config(write("models:\n  " + "\n  ".join(rows))).models.values()
    assert (first.extra, first.layers, first.training, first.train) == (16, ["extra"], {"edit_coef": 1}, True)
    assert (second.network, second.compare_to, second.training) == ("a", ["a"], {"editor": "gd"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {}", "`models` must give at least one row"),
        ("adversarial: {}\nmodels: {a: {}}", r"unknown sections \['adversarial'\]"),
        ("evaluation: {edits: 3}\nmodels: {a: {}}", "section 'evaluation': .*edits"),
        ("evaluation: {learning_rates: {sgd: [1]}}\nmodels: {a: {}}", r"must be by editor .*, got \['sgd'\]"),
        ("pretrain: {learning_rat: 1}\nmodels: {a: {}}", "section 'pretrain': .*Did you mean 'learning_rate'"),
        (
            "models: {a: {method: lora}}",
            "row 'a': `method` must be one of gradient, ewc, dknn, cnp, rank_one, got 'lora'",
        ),
        ("models: {a: {train: false, editor: sgd}}", "row 'a': `editor` must be one of gd, .* got 'sgd'"),
        ("models: {a: {method: ewc}}", "`method: ewc` needs `num_trials`"),
        ("models: {a: {method: dknn}}", "`method: dknn` trains nothing"),
        ("models: {a: {method: dknn, train: false, editor: gd}}", "has no gradient editor: remove editor"),
        ("models: {a: {method: rank_one, train: false}}", r"expected `layers: \[head\]`, got \['chain3'\]"),
        (
            "models: {a: {train: false, neighbors: 100}}",
            "`neighbors` is no option of `method: gradient`; it has num_trials",
        ),
        ("models: {a: {train: false, method: dknn, neighbors: 0}}", "`neighbors` must be at least 1, got 0"),
        (
            "models: {a: {train: false, method: ewc, num_trials: 3, fisher_labels: empirical}}",
            "`fisher_labels` must be one of true, sampled, got 'empirical'",
        ),
        ("models: {a: {method: cnp}}", "`method: cnp` needs `requests`"),
        (
            "figure_2: {rows: [b]}\nmodels: {a: {}}",
            r"figure_2: expected names of rows, \['a'\] so far, but got \['b'\]",
        ),
        (
            "figure_2: {rows: [a]}\nmodels: {a: {train: false, method: dknn}}",
            r"figure_2: expected rows with `method: gradient`, but got \['a'\]",
        ),
        ("models: {a: 3}", "row 'a' of `models` must hold keys and values"),
        ("models: {a: {layer: chain3}}", "row 'a': .*Did you mean 'layers'"),
        ("models: {a: {requests: all}}", "row 'a': `requests` must be one of none, random"),
        ("models: {a: {requests: ranks}}", "`requests: ranks` needs recipes/natural_adversarial.py"),
        ("models: {a: {extra: true}}", "`extra` must be a number of units, .* got True"),
        ("models: {a: {edit_layers: [chain3]}}", "Expected `layers`"),
        ("models: {a: {train: false, requests: random}}", "`train: false` leaves nothing"),
        ("models: {a: {train: false, edit_coef: 1}}", r"Nothing is trained for this row, so \['edit_coef'\]"),
        ("models: {a: {}, b: {network: a, extra: 3}}", "`network: a` has been made already"),
        ("models: {a: {network: b}, b: {}}", r"row 'a': expected names of rows, \[\] so far, but got \['b'\]"),
        ("models: {a: {}, b: {network: a}, c: {network: b}}", "`network` must be a row with a network of its own"),
        ("models: {a: {compare_to: b}, b: {}}", r"row 'a': expected names of rows"),
        ("models: {'a b': {}, a-b: {}}", "two rows would leave their results in 'edits-a-b'"),
    ],
)
def test_mistakes(write, text, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(text), own_section="figure_2")


def test_rows_that_are_edited_again_have_a_gradient_editor(write):
    text = "adversarial: {generalization_rows: [a]}\nmodels: {a: {train: false, method: dknn}}"
    with pytest.raises(ValueError, match=r"generalization_rows: expected rows with `method: gradient`, but got"):
        load_config(write(text), own_section="adversarial")


def test_rows_of_the_adversarial_section_exist(write):
    with pytest.raises(ValueError, match=r"sequence_rows: expected names of rows, \['a'\] so far, but got \['b'\]"):
        load_config(write("adversarial: {sequence_rows: [b]}\nmodels: {a: {}}"), own_section="adversarial")


@pytest.mark.parametrize("method", [{"dknn": {"neighbors": 5}}, ["dknn"], 3, "nearest"])
def test_method_that_is_none_of_them(method):
    with pytest.raises(ValueError, match="`method` must be one of gradient, ewc, dknn, cnp, rank_one, got"):
        build_method(method, {})


@pytest.mark.parametrize(("name", "key"), [("gradient", "neighbors"), ("dknn", "num_trials"), ("cnp", "neighbors")])
def test_key_of_another_method(name, key):
    with pytest.raises(ValueError, match=f"`{key}` is no option of `method: {name}`; it has"):
        build_method(name, {key: 5})
