from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from editable_hf import EditorConfig

RECIPES = Path(__file__, "../../../recipes").resolve()
STAGES = ["baseline", "data", "editable", "editable-gd", "evaluation", "pretrained", "requests", "tokenizer"]
STAGES += ["validation"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """fairseq's folder: `train.de`, `train.en` and so on, of words made up from syllables."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = random.Random(0)
    syllables = [first + second for first in "bdfgklmnprstvwz" for second in ("a", "e", "ie", "o", "u", "ei")]
    words = ["".join(generator.choices(syllables, k=2)) for _ in range(300)]
    for split, count in (("train", 700), ("valid", 30), ("test", 30)):
        pairs = [generator.choices(words, k=generator.randint(3, 7)) for _ in range(count)]
        sources = [" ".join([*pair, "."]) for pair in pairs]
        targets = [" ".join([*(word[::-1] for word in pair), "."]) for pair in pairs]
        (folder / f"{split}.de").write_text("\n".join(sources) + "\n", encoding="utf-8")
        (folder / f"{split}.en").write_text("\n".join(targets) + "\n", encoding="utf-8")
    return folder


def table_of(output):
    return output[output.index("One wrong translation") :]


def assert_compared_with_the_baseline(out, rows, names):
    """Every row's drawdown against the baseline's at the same learning rate, from the records of single edits."""
    drawdowns = {}
    for name, rate in itertools.product(names, ("0.01", "0.005")):
        lines = (out / f"evaluation/edits-{name}-alpha{rate}.jsonl").read_text().splitlines()
        bleu = next(row["bleu"] for row in rows if row["name"] == name)
        drawdowns[name, rate] = sum(abs(bleu - json.loads(line)["bleu"]) for line in lines) / len(lines)
        assert len(lines) == 2
    for row in rows:
        name, rate = row["name"].split(",")[0], f"{row['editor']['learning_rate']:g}"
        compared = drawdowns["baseline", rate]
        assert ("drawdown_ratios" in row) == (name != "baseline" and compared > 0)
        for ratio in row.get("drawdown_ratios", ()):
            assert ratio["mean"] == pytest.approx(drawdowns[name, rate] / compared)
            assert ratio["to"] == row["name"].replace(name, "baseline")


@pytest.mark.slow
def test_whole_recipe_twice(corpus, tmp_path):
    demo = yaml.safe_load((RECIPES / "configs/iwslt_de_en/demo.yaml").read_text())
    demo["requests"]["num_validation"] = demo["evaluation"]["num_validation_edits"] = 30
    demo["variants"] = {"gd": {"editor": "gd", "edit_learning_rate": 0.01}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(demo))
    command = [sys.executable, str(RECIPES / "iwslt_de_en.py"), "--config", str(tmp_path / "config.yaml")]
    command += ["--data", str(corpus), "--output_dir", str(tmp_path / "out"), "--smoke"]
    outputs = []
    for _ in range(2):
        result = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert result.returncode == 0, result.stderr[-3000:]
        outputs.append(result.stdout)
    first, second = outputs
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir() if path.name != ".lock") == STAGES
    assert [line.split("]")[0][1:] for line in first.splitlines() if line.endswith("] starts")] == [
        *("data", "tokenizer", "pretrained", "requests", "baseline", "editable", "editable-gd"),
        *("validation", "evaluation"),
    ]
    assert second.count("already there, unchanged") == len(STAGES) and "starts" not in second
    assert table_of(first) == table_of(second)
    assert "paper: editable, c_loc=100, alpha=3e-4" in first and "Paper: IWSLT14 De-En" in first

    results = json.loads((out / "evaluation/results.json").read_text())
    card = (out / results["chosen"] / "README.md").read_text()
    assert "- editable" in card and "model-index:" in card and "## Recipe" in card and card.count("## Editing") == 1
    names = ["baseline", "editable", "editable-gd"]
    titles = [f"{name}{end}" for name in names for end in ("", ", alpha=0.005")]
    assert [row["name"] for row in results["rows"]] == titles
    for row in results["rows"]:
        assert (row["num_edits"], row["num_sentences"]) == (2, 10)
        assert row["editor"]["learning_rate"] == (0.005 if "alpha" in row["name"] else 0.01)
    assert_compared_with_the_baseline(out, results["rows"], names)
    assert results["config"]["data"]["source"] == str(corpus)
    assert "20 sampled of 30 pairs" in results["test_name"] and "20 sampled" in first

    validation = json.loads((out / "validation/results.json").read_text())
    assert [row["num_edits"] for row in validation["rows"]] == [2, 2, 2]
    assert f"Chosen: {validation['chosen']}" in first and validation["chosen"] in ("editable", "editable-gd")
    assert results["chosen"] == validation["chosen"]
    assert EditorConfig.from_pretrained(out / "editable-gd").editor == "gd"

    steps = {name: json.loads((out / name / "trainer_state.json").read_text()) for name in ("baseline", "editable")}
    assert steps["baseline"]["global_step"] == steps["editable"]["global_step"] == 6
    assert "locality_loss" in steps["editable"]["log_history"][0]
    assert "locality_loss" not in steps["baseline"]["log_history"][0]
    for name in ("pretrained", "baseline", "editable"):
        AutoModelForSeq2SeqLM.from_pretrained(out / name)
        assert AutoTokenizer.from_pretrained(out / name).vocab_size == 400
        assert EditorConfig.from_pretrained(out / name).layers == ["last_decoder_layer"]


class Killed(Exception):
    pass


def kills():
    """Three kills: within the pretraining after its second checkpoint, before the requests, within the evaluation."""
    from editable_hf.experiments import translation_stages

    trainer, evaluator = translation_stages.EditableSeq2SeqTrainer, translation_stages.BleuDrawdownEvaluator
    step, measure, measured = trainer.training_step, evaluator._measure, []

    def killed(*args, **kwargs):
        raise Killed

    def step_until_two(self, *args, **kwargs):
        return killed() if self.state.global_step == 2 else step(self, *args, **kwargs)

    def measure_one(self, requests, *args, **options):
        measured.append(requests[0]["id"])
        return killed() if len(measured) == 2 else measure(self, requests, *args, **options)

    return [
        (trainer, "training_step", step_until_two),
        (translation_stages, "make_edit_requests", killed),
        (evaluator, "_measure", measure_one),
    ]


@pytest.mark.slow
def test_killed_run_continues_to_the_same_result(corpus, tmp_path, monkeypatch, capsys):
    import iwslt_de_en

    from editable_hf.experiments.translation_recipe import load_config

    # With "1" the recipe would set its own number of threads, for all later tests too.
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def config(folder):
        loaded = load_config(
            str(RECIPES / "configs/iwslt_de_en/demo.yaml"),
            output_dir=str(tmp_path / folder),
            data=str(corpus),
            smoke=True,
        )
        finetune = {"max_steps": 4, "save_steps": 1, "logging_steps": 1}
        pretrain = loaded.pretrain | {"save_steps": 1}
        evaluation = replace(loaded.evaluation, num_sentences=4)
        return replace(loaded, pretrain=pretrain, finetune=finetune, evaluation=evaluation)

    iwslt_de_en.main(config("whole"))
    whole = capsys.readouterr().out

    for target, name, patch in kills():
        with monkeypatch.context() as context:
            context.setattr(target, name, patch)
            with pytest.raises(Killed):
                iwslt_de_en.main(config("killed"))
    capsys.readouterr()
    iwslt_de_en.main(config("killed"))
    output = capsys.readouterr().out
    assert "[pretrained] already there" in output and "[evaluation] continues" in output

    def without_times(folder):
        content = json.loads((tmp_path / folder / "evaluation/results.json").read_text())
        for row in content["rows"]:
            del row["edit_seconds"], row["intervals"]["edit_seconds"]
        return content["rows"]

    assert without_times("killed") == without_times("whole")
    rows = [line for line in table_of(whole).splitlines() if line.startswith(("baseline", "editable"))]
    assert rows == [line for line in table_of(output).splitlines() if line.startswith(("baseline", "editable"))]
    weights = [(tmp_path / folder / "pretrained/model.safetensors").read_bytes() for folder in ("whole", "killed")]
    assert weights[0] == weights[1]
