from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launcher import TESTS
from tiny_models import marian_config
from transformers import MarianMTModel

from editable_hf import EditableSeq2SeqTrainingArguments
from editable_hf.launch import check_launch
from editable_hf.training.checks import check_supported

CONFIGS = sorted((TESTS.parent / "recipes/accelerate").glob("*.yaml"))
LAUNCHER = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_MIXED_PRECISION": "no"}


@pytest.fixture
def environment(monkeypatch):
    for name in (*LAUNCHER, "WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


def test_processes_that_each_believe_to_be_alone(environment):
    environment("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="2 processes were started, but each believes to be alone.*USE_CPU=true"):
        check_launch(1)
    check_launch(2)


def test_a_single_process_where_several_were_asked_for(environment):
    for name, value in LAUNCHER.items():
        environment(name, value)
    with pytest.raises(RuntimeError, match="asked for several processes but started only this one.*--multi_gpu"):
        check_launch(1)
    environment("WORLD_SIZE", "1")  # torchrun's
    check_launch(1)


def test_trainers_check_it_too(environment, tmp_path):
    args = EditableSeq2SeqTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    model = MarianMTModel(marian_config())
    check_supported(model, args)
    environment("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="each believes to be alone"):
        check_supported(model, args)


def test_a_cluster_may_set_the_port(environment):
    environment("MASTER_PORT", "29500")
    check_launch(1)


PROGRAM = """
from editable_hf.launch import launched_processes
state = launched_processes()
print(f"process {state.process_index} of {state.num_processes}", flush=True)
"""


def accelerate(tmp_path, *options):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", *options, str(program)]
    environment = {name: value for name, value in os.environ.items() if name not in (*LAUNCHER, "ACCELERATE_USE_CPU")}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.distributed
def test_what_accelerate_would_start_alone_without_a_word_is_refused(tmp_path):
    result = accelerate(tmp_path, "--cpu", "--num_processes", "2")
    assert result.returncode != 0 and "started only this one" in result.stderr


@pytest.mark.distributed
def test_configuration_for_cpus_starts_two(tmp_path):
    (config,) = (path for path in CONFIGS if path.stem == "cpu")
    result = accelerate(tmp_path, "--config_file", str(config))
    assert result.returncode == 0, result.stderr[-2000:]
    # Not by lines: what two processes print at once may share one.
    assert sorted(re.findall(r"process \d of \d", result.stdout)) == ["process 0 of 2", "process 1 of 2"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_are_of_the_kind_that_accelerate_reads(path):
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    config = config_args.load_config_from_file(str(path))
    content = yaml.safe_load(path.read_text())
    assert config.num_processes == content["num_processes"] and config.num_machines == content["num_machines"]
    assert (config.distributed_type == "MULTI_GPU") == (config.num_processes > 1)
    assert f"--config_file recipes/accelerate/{path.name}" in path.read_text()  # says how it is used
