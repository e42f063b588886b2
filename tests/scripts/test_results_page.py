from __future__ import annotations

import json

import pytest

ENVIRONMENT = {
    "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    "machine": {"device": "a machine", "threads": 2},
}


def table_row(name, drawdown, **others):
    numbers = {"bleu": 30.0, "bleu_drawdown": drawdown, "success_rate": 1.0, "num_edits": 10, "num_sentences": 50}
    return {"name": name, **numbers, "intervals": {"bleu_drawdown": [drawdown - 0.1, drawdown + 0.1]}, **others}


def write_run(path, seed, rows, commit="0123456789ab", **others):
    config = {
        "output_dir": str(path.parent / "run"),
        "data": {"source": str(path.parent / "corpus"), "parts": ["a/b"]},
    }
    content = {"rows": rows, "config": config, "seed": seed, "commit": commit, **ENVIRONMENT, **others}
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def collect(run_script, tmp_path):
    def run(path, name):
        options = ["--name", name, "--command", f"recipes/x.py --seed {name[-1]}", "--folder", tmp_path / "results"]
        options += ["--note", "In two pieces."] if name.endswith("seed2") else []
        return run_script("scripts/collect_result.py", path, *options)

    return run


def test_page_of_three_runs_and_one(run_script, collect, tmp_path):
    for seed, drawdown in enumerate((1.0, 1.2, 1.7)):
        rows = [table_row("baseline", drawdown), table_row("editable", drawdown / 2)]
        write_run(tmp_path / "run.json", seed, rows, test_name="a test set", chosen="editable")
        done = collect(tmp_path / "run.json", f"table_6-corpus-seed{seed}")
        assert done.returncode == 0, done.stderr
    write_run(tmp_path / "run.json", 0, [table_row("baseline", 0.25)], test_name="another")
    assert collect(tmp_path / "run.json", "table_6-other-seed0").returncode == 0
    (tmp_path / "results/claims.md").write_text("## What holds\n\nThis and that.\n")
    done = run_script("scripts/results_page.py", "--folder", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "results/README.md").read_text()

    assert "This and that." in page and "**a test set.** Means of 3 runs." in page and "**another.**\n" in page
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    titles, _, baseline, editable = lines[:4]
    cells = dict(zip(titles, baseline, strict=True))
    assert (cells["drawdown"], cells["lowest-highest run"], cells["paper: drawdown"]) == (
        "1.300",
        "1.000-1.700",
        "0.760",
    )
    assert dict(zip(titles, editable, strict=True))["edits"] == "30"
    alone = dict(zip(lines[4], lines[6], strict=True))
    assert (alone["drawdown"], alone["95% interval"]) == ("0.250", "0.150-0.350")
    assert "On validation edits the choice is: editable, editable, editable." in page
    assert page.count("In two pieces.") == 1
    for seed in range(3):
        assert f"`recipes/x.py --seed {seed}`: seed {seed}, commit 0123456789ab, a machine" in page
    assert (tmp_path / "results/table_6-corpus.png").stat().st_size > 5_000
    assert "](table_6-other.png)" in page and "## Figure 2" not in page


def test_paths_of_the_machine_are_left_out(collect, tmp_path):
    write_run(tmp_path / "run.json", 0, [table_row("baseline", 1.0)])
    collect(tmp_path / "run.json", "table_6-corpus-seed0")
    text = (tmp_path / "results/table_6-corpus-seed0.json").read_text()
    config = json.loads(text)["config"]
    assert (
        config == {"output_dir": "run", "data": {"source": "corpus", "parts": ["a/b"]}} and str(tmp_path) not in text
    )


@pytest.mark.parametrize("commit", [None, "0123456789ab-dirty"])
def test_what_nobody_can_repeat_is_refused(collect, tmp_path, commit):
    write_run(tmp_path / "run.json", 0, [table_row("baseline", 1.0)], commit=commit)
    done = collect(tmp_path / "run.json", "table_6-corpus-seed0")
    assert done.returncode == 1 and "which nobody can check out" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


def test_other_files_are_refused(collect, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    done = collect(tmp_path / "run.json", "table_6-corpus-seed0")
    assert done.returncode == 1 and "lacks rows, config, seed, versions, commit, machine" in done.stderr
