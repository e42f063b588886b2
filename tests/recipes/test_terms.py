from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import terms
import yaml

from editable_hf.experiments import term_stages
from editable_hf.experiments.recipe_config import folder_name
from editable_hf.experiments.term_recipe import load_config
from editable_hf.experiments.translation_stages import train_model
from editable_hf.terms.glossary import read_glossary

CONFIGS = Path(__file__, "../../../recipes/configs/terms").resolve()
# One row of each kind; the other editors differ in numbers.
ROWS = {
    "replaced": {"method": "replace"},
    "constrained": {"method": "constrain", "rates": [4]},
    "edit": {"rates": [3e-3, 1e-2], "network": "on terms"},
}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs(path):
    config = load_config(str(path))
    glossary = read_glossary(config.terms.glossary)
    assert not glossary.left_out and config.terms.num_test >= 30
    # Enough for training, too; no term has what another one replaces, or is looked for in another one's sentences.
    assert len(glossary.terms) >= config.terms.num_test + config.terms.num_validation + 20
    assert all(term.replaces and not term.is_right(term.replaces[0]) for term in glossary.terms)
    assert {row.method for row in config.rows.values()} >= {"none", "replace", "constrain", "lora", "gradient"}


@pytest.fixture
def config(sentence_pairs, tokenizer, translator_template, tmp_path, monkeypatch):
    """The demo with the words and the model of the tests, which has learned them already."""
    data = tmp_path / "data"
    data.mkdir()
    for split, part in (("train", slice(0, 200)), ("valid", slice(0, 20)), ("test", slice(20, 40))):
        for language, sentences in zip(("de", "en"), sentence_pairs, strict=True):
            (data / f"{split}.{language}").write_text("".join(f"{text}\n" for text in sentences[part]))
    (tmp_path / "embedded.tsv").write_text(
        "hund\tthe woman\tthe dog\nkatze\tthe woman\tthe cat\nstadt\tthe book\tthe city\nzug\tthe book\tthe train\n"
        "elefant\tthe book\tx\n"
    )
    demo = {**yaml.safe_load((CONFIGS / "demo.yaml").read_text()), "rows": ROWS}
    demo["models"] = {"on terms": {"requests": "terms"}}
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(demo, sort_keys=False))
    options = {"output_dir": str(tmp_path / "out"), "data": str(data), "smoke": True}
    config = load_config(str(tmp_path / "demo.yaml"), **options)
    config.terms.num_sentences, config.model.max_length = 150, 40
    config.training |= {"use_cpu": True, "disable_tqdm": True, "max_tokens_per_batch": 200}

    def train(config, parts, start, requests, options, folder):
        if start is not None:
            return train_model(config, parts, start, requests, options, folder)
        model = copy.deepcopy(translator_template)
        model.generation_config.update(num_beams=2, early_stopping=True, max_new_tokens=20)
        model.save_pretrained(folder)
        return tokenizer.save_pretrained(folder)

    monkeypatch.setattr(terms, "train_model", train)
    monkeypatch.setattr(terms, "prepare_tokenizer", lambda config, data, folder: tokenizer.save_pretrained(folder))
    return config


@pytest.mark.slow
def test_demo_twice(config, tmp_path, capsys, monkeypatch):
    terms.main(config)
    printed, out = capsys.readouterr().out, tmp_path / "out"
    assert "One term at a time, 2 terms" in printed and "2 terms at once" in printed
    results = json.loads((out / "results.json").read_text())
    replaced, constrained, edited = results["rows"]
    assert [row["name"] for row in results["rows"]] == list(ROWS) == [row["name"] for row in results["at_once"]]
    for row in (replaced, constrained):  # they touch no other sentence
        assert row["outputs_changed"] == row["bleu_drawdown"] == 0 and row["edited_right"] == 1
    assert edited["edited_right"] >= 0.5 and edited["outputs_changed"] > 0 and edited["rate"] in ROWS["edit"]["rates"]
    kept = json.loads((out / "terms/terms.json").read_text())
    parts = {part: [row["examples"]["term"]["source"][0] for row in rows] for part, rows in kept.items()}
    assert parts == {"test": ["hund", "katze"], "validation": ["stadt"], "train": ["zug"]}
    for row in kept["test"]:
        seen = {each["source"] for part in ("edit", "check") for each in row["examples"][part]}
        assert len(row["unseen"]) == 2 and not seen & set(row["unseen"])
    assert all((out / f"{key}.png").stat().st_size > 5_000 for key in terms.DRAWN)
    lines = (out / f"row-{folder_name('edit')}/terms.jsonl").read_text().splitlines()
    assert [json.loads(line)["terms"] for line in lines] == [["hund"], ["katze"]]
    for name in ("check_learned", "measure"):
        monkeypatch.setattr(term_stages, name, None)
    terms.main(config)
    assert json.loads((out / "results.json").read_text())["rows"] == results["rows"]


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("rows", {"a": {"method": "none", "rates": [1]}}, "`method: none` has no `rates`"),
        ("rows", {"a": {}}, "`method: gradient` needs `rates`"),
        ("models", {"a": {"requests": "facts"}}, "`requests` must be terms or sentences, got 'facts'"),
        ("terms", {"num_test": 0}, "Expected terms to measure and to choose with"),
    ],
)
def test_mistakes_in_the_file(section, values, message, write):
    with pytest.raises(ValueError, match=message):
        load_config(write(yaml.safe_dump({"rows": {"a": {"method": "none"}}, section: values})))
