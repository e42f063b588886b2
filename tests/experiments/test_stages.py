from __future__ import annotations

import json

import pytest

from editable_hf.experiments.stages import Stages


class Builder:
    """Builds a stage by writing what it is told to, and counts how often."""

    def __init__(self, content="made"):
        self.content, self.calls = content, 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "result.txt").write_text(self.content)


@pytest.fixture
def stages(tmp_path):
    return Stages(tmp_path / "out")


def names(stages):
    return sorted(path.name for path in stages.output_dir.iterdir() if path.name != ".lock")


def test_built_once(stages, capsys):
    build = Builder()
    first = stages.run("data", {"source": "a"}, [], build)
    assert first.folder == stages.output_dir / "data"
    assert (first.folder / "result.txt").read_text() == "made"
    assert capsys.readouterr().out == "[data] starts\n"
    again = Stages(stages.output_dir).run("data", {"source": "a"}, [], build)
    assert again == first and build.calls == 1
    assert capsys.readouterr().out == f"[data] already there, unchanged: {first.folder}\n"
    assert names(stages) == ["data"]


def test_says_what_it_was_made_from(stages):
    data = stages.run("data", {"source": "a"}, [], Builder())
    model = stages.run("model", {"size": 3}, [data], Builder())
    content = json.loads((model.folder / "stage.json").read_text())
    assert content == {"fingerprint": model.fingerprint, "inputs": {"size": 3}, "after": [data.fingerprint]}


def test_looking_builds_nothing(stages):
    data, there = stages.look("data", {"source": "a"}, [])
    assert not there and names(stages) == []
    assert stages.run("data", {"source": "a"}, [], Builder()) == data
    assert stages.look("data", {"source": "a"}, []) == (data, True)
    other, there = stages.look("data", {"source": "b"}, [])
    assert not there and other.fingerprint != data.fingerprint and names(stages) == ["data"]


def test_moved_aside_when_inputs_change(stages):
    for source in "abcb":
        stages.run("data", {"source": source}, [], Builder(source))
    assert names(stages) == ["data", "data.old1", "data.old2", "data.old3"]
    contents = [(stages.output_dir / name / "result.txt").read_text() for name in names(stages)]
    assert contents == ["b", "a", "b", "c"]


def test_order_of_inputs_does_not_matter(stages):
    first = stages.run("data", {"a": 1, "b": [2]}, [], Builder())
    build = Builder()
    assert stages.run("data", {"b": [2], "a": 1}, [], build) == first and build.calls == 0


def test_depends_on_earlier_stages(stages):
    def chain(source):
        data = stages.run("data", {"source": source}, [], Builder(source))
        tokenizer = stages.run("tokenizer", {}, [data], Builder(source))
        return [data, tokenizer, stages.run("model", {}, [tokenizer], Builder(source))]

    first, second = chain("a"), chain("b")
    assert all(one.fingerprint != other.fingerprint for one, other in zip(first, second, strict=True))
    assert (second[2].folder / "result.txt").read_text() == "b"
    assert (stages.output_dir / "model.old1/result.txt").read_text() == "a"
    fingerprints = {
        stages.run(f"x{number}", {}, after, Builder()).fingerprint
        for number, after in enumerate(([], first[:1], first[:2], first[1::-1]))
    }
    assert len(fingerprints) == 4


class Interrupted(Exception):
    pass


def test_continues_where_it_was_killed(stages, capsys):
    seen = []

    def build(folder):
        seen.append(sorted(path.name for path in folder.iterdir()))
        (folder / f"part{len(seen)}").write_text("x")
        if len(seen) < 3:
            raise Interrupted

    for _ in range(2):
        with pytest.raises(Interrupted):
            stages.run("model", {"size": 1}, [], build)
        assert names(stages) == ["model.partial"]
    stage = stages.run("model", {"size": 1}, [], build)
    assert seen == [["stage.json"], ["part1", "stage.json"], ["part1", "part2", "stage.json"]]
    assert sorted(path.name for path in stage.folder.iterdir()) == ["part1", "part2", "part3", "stage.json"]
    assert capsys.readouterr().out == "[model] starts\n[model] continues\n[model] continues\n"
    assert names(stages) == ["model"]


def test_beginnings_from_other_inputs_are_kept_aside(stages):
    def fail(folder):
        (folder / "part").write_text("first")
        raise Interrupted

    with pytest.raises(Interrupted):
        stages.run("model", {"size": 1}, [], fail)
    build = Builder()
    stage = stages.run("model", {"size": 2}, [], build)
    assert not (stage.folder / "part").exists()
    assert (stages.output_dir / "model.partial.old1/part").read_text() == "first"


def test_kill_before_a_stage_has_its_file_leaves_nothing_to_keep(stages, capsys):
    partial = stages.output_dir / "model.partial"
    for left in ([], ["stage.json.tmp"]):
        partial.mkdir()
        for name in left:
            (partial / name).write_text('{"finger')
        stage = stages.run("model", {"left": left}, [], Builder())
        assert sorted(path.name for path in stage.folder.iterdir()) == ["result.txt", "stage.json"]
        assert capsys.readouterr().out == "[model] continues\n"
    assert names(stages) == ["model", "model.old1"]


def test_failed_change_keeps_the_finished_stage(stages):
    stages.run("model", {"size": 1}, [], Builder("good"))

    def fail(folder):
        raise Interrupted

    with pytest.raises(Interrupted):
        stages.run("model", {"size": 2}, [], fail)
    assert (stages.output_dir / "model.old1/result.txt").read_text() == "good"


def test_foreign_folder_is_not_taken_for_a_stage(stages):
    folder = stages.output_dir / "data"
    folder.mkdir()
    (folder / "mine.txt").write_text("precious")
    for content in ("{", "[]", "{}"):
        (folder / "stage.json").write_text(content)
        assert not stages.look("data", {}, [])[1]
    stages.run("data", {}, [], Builder())
    assert (stages.output_dir / "data.old1/mine.txt").read_text() == "precious"


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    with pytest.raises(RuntimeError, match="2 processes were started, but each believes to be alone.*USE_CPU=true"):
        Stages(tmp_path / "out")
    assert not (tmp_path / "out").exists()
