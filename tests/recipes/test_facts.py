from __future__ import annotations

import json
from pathlib import Path

import facts
import pytest
from causal_models import causal_model

from editable_hf.data.tokenizer import train_causal_tokenizer
from editable_hf.experiments import fact_methods, fact_stages
from editable_hf.experiments.fact_methods import subject_end
from editable_hf.experiments.fact_recipe import RowOptions, load_config

CONFIGS = Path(__file__, "../../../recipes/configs/facts").resolve()


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs(path):
    config = load_config(str(path))
    assert all(row.network in ("pretrained", *config.models) for row in config.rows.values())
    assert len(config.rows) >= 3 and max(config.evaluation.at_once) <= config.evaluation.num_at_once


def smoke(name, tmp_path, **options):
    config = load_config(str(CONFIGS / f"{name}.yaml"), output_dir=str(tmp_path / "out"), smoke=True, **options)
    config.training |= {"use_cpu": True, "disable_tqdm": True}
    return config


@pytest.mark.slow
def test_demo_twice(tmp_path, capsys, monkeypatch):
    config = smoke("demo", tmp_path)
    # One row of each kind; the others differ in numbers.
    kept = ("no edit", "ROME", "UltraEdit", "MEND", "GRACE", "RMSProp, editable for 10 at once")
    monkeypatch.setattr(fact_methods, "_MEND_STEPS", 1)
    mend = RowOptions(method="mend", layers="layers.3.mlp.down_proj.weight", grid={"learning_rate": [1e-4]})
    trained = RowOptions(network="editable for 10 at once", grid={"learning_rate": [1e-3, 3e-3]}, max_rounds=2)
    rows = {
        **config.rows,
        "RMSProp, editable for 10 at once": trained,
        "MEND": mend,
        "GRACE": RowOptions(method="grace", layers="layers.2.mlp.down_proj.weight", grid={"radius": [0.1, 0.2]}),
        "UltraEdit": RowOptions(method="ultra_edit", grid={"learning_rate": [1e-2]}),
    }
    config.rows = {name: rows[name] for name in kept}
    config.models = {"editable for 10 at once": {"edits": True, "edits_at_once": 2}}
    facts.main(config)
    printed, out = capsys.readouterr().out, tmp_path / "out"
    assert all(text in printed for text in ("One edit at a time, 4 edits", "Several edits at once", "Edits in a row"))
    results = read(out / "results.json")
    assert [row["name"] for row in results["rows"]] == list(kept)
    untouched, *_, trained = results["rows"]
    assert (untouched["kl"], untouched["locality"], untouched["perplexity_drawdown"]) == (0, 1, 0)
    rates = [trial["learning_rate"] for trial in trained["tried"]]
    assert trained["learning_rate"] in rates and len(rates) == 3  # the row's two and the one that was learned
    assert [(row["name"], row["edits"]) for row in results["at_once"]] == [(name, 2) for name in kept[1:]]
    assert [row["edits"] for row in results["in_a_row"]] == [1, 3] * 5
    assert (out / "at_once.png").stat().st_size > 5_000 and (out / "in_a_row.png").stat().st_size > 5_000
    for module, name in ((fact_stages, "EditableCausalLMTrainer"), (fact_stages, "FactEditEvaluator")):
        monkeypatch.setattr(module, name, None)
    facts.main(config)
    assert read(out / "results.json")["rows"] == results["rows"]


def write_public_files(folder):
    """CounterFact in EasyEdit's form, and text."""
    folder.mkdir()
    cities = ["Rome", "Oslo", "Bern", "Lima", "Cairo", "Delhi", "Quito", "Tunis"]
    for offset, name in enumerate(("train", "val", "edit")):
        rows = [
            {
                "case_id": number,
                "subject": f"Tower {number + 8 * offset}",
                "prompt": f"Tower {number + 8 * offset} is in",
                "target_new": city,
                "ground_truth": cities[number - 1],
                "rephrase_prompt": f"To see Tower {number + 8 * offset}, go to",
                "locality_prompt": f"Bridge {number} is in",
                "locality_ground_truth": city,
            }
            for number, city in enumerate(cities)
        ]
        rows += [rows[0]] if name == "edit" else []
        (folder / f"counterfact_{name}.json").write_text(json.dumps(rows))
    text = "\n".join(f"{city} is a town of which much could be said here and there ." for city in cities)
    for part in ("valid", "test"):
        (folder / f"wikitext2.{part}.txt").write_text(f" = A heading = \n\n{text}\n")


def test_public_files_and_given_weights(tmp_path):
    write_public_files(tmp_path / "data")
    path = tmp_path / "config.yaml"
    path.write_text((CONFIGS / "smollm2.yaml").read_text().replace(".xz", "").replace("layers.20", "layers.0"))
    texts = [f"Tower {number} is in a town" for number in range(30)]
    tokenizer = train_causal_tokenizer(texts, 300)
    causal_model("llama", vocab_size=len(tokenizer), max_position_embeddings=128).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    options = {"data": str(tmp_path / "data"), "weights": str(tmp_path / "model")}
    config = load_config(str(path), output_dir=str(tmp_path / "out"), smoke=True, **options)
    config.training |= {"use_cpu": True, "disable_tqdm": True}
    sets = fact_stages.load_fact_sets(config)
    assert {split: len(rows) for split, rows in sets.edits.items()} == {"train": 4, "validation": 2, "test": 4}
    assert len(sets.test_texts) == 8 and not any("heading" in text for text in sets.test_texts)
    facts.main(config)
    rows = read(tmp_path / "out/results.json")["rows"]
    assert [row["name"] for row in rows] == list(config.rows)
    assert all(row["num_edits"] == 4 and 0 <= row["generality"] <= 1 for row in rows)


def test_facts_that_are_trained_on_are_not_edited(tmp_path):
    write_public_files(tmp_path / "data")
    rows = read(tmp_path / "data/counterfact_train.json")
    (tmp_path / "data/counterfact_edit.json").write_text(
        json.dumps([*rows, {**rows[0], "prompt": "Tower 0 stands in"}])
    )
    path = tmp_path / "config.yaml"
    path.write_text((CONFIGS / "smollm2.yaml").read_text().replace(".xz", ""))
    config = load_config(str(path), data=str(tmp_path / "data"))
    assert fact_stages.load_fact_sets(config).edits["test"]["prompt"] == ["Tower 0 stands in"]


def test_model_that_does_not_know_the_facts_ends_the_run(tmp_path):
    config = smoke("demo", tmp_path)
    config.requests.min_recall = 0.9
    with pytest.raises(ValueError, match="knows 0% of the facts, but `min_recall` asks for 90%"):
        facts.main(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: {}", "`rows` must give at least one row"),
        ("rows: {a: {method: knn}}", "row 'a': `method` must be one of none, gradient, ft_l"),
        ("rows: {a: {network: editable}}", "row 'a': `network` must be pretrained or one of `models`"),
        ("rows: {a: {rate: 1}}", r"row 'a': unknown keys \['rate'\]; expected network"),
        (
            "rows: {a: {method: memit, grid: {rank: [1]}}}",
            "`method: memit` has no option rank to try, only: at_s",
        ),
        ("rows: {a: {method: lora, grid: {learning_rate: 1}}}", "must hold lists of values, such as `learning_rate: "),
        ("models: {pretrained: {}}\nrows: {a: {}}", "cannot be called pretrained"),
        ("rows: {a b: {}, a-b: {}}", "two rows would leave their results in one folder"),
        ("models: {a b: {}, a-b: {}}\nrows: {a: {}}", "two models would leave their results in one folder"),
        ("models: {a: {edit: true}}\nrows: {a: {}}", r"model 'a': \['edit'\] are no training arguments"),
        ("data: {source: folder}\nrows: {a: {}}", "a folder with files that are all named .* with none"),
    ],
)
def test_mistakes_in_the_file(text, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_config(str(path))


def test_where_a_subject_ends():
    tokenizer = train_causal_tokenizer(["The tower of Arnamur is in Lim, Arnamur in Oslo."], 280)
    ids = tokenizer("The tower of Arnamur is in")["input_ids"]
    end = subject_end(tokenizer, "The tower of Arnamur is in", "Arnamur")
    assert tokenizer.decode(ids[: end + 1]) == "The tower of Arnamur"
    assert subject_end(tokenizer, "The tower of Arnamur is in", "Lim") == len(ids) - 1
