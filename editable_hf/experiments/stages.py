"""Stages of a recipe: each leaves a folder, is skipped when it is there already, and continues where it was killed."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import broadcast_object_list

from editable_hf.data.atomic import write_atomically
from editable_hf.experiments.run_lock import claim_folder
from editable_hf.launch import launched_processes

logger = logging.getLogger(__name__)

STAGE_FILE = "stage.json"


class Stage(NamedTuple):
    """A finished stage: its folder, and the fingerprint of everything that it was made from."""

    folder: Path
    fingerprint: str


class Stages:
    """Runs the stages of a recipe below one output folder.

    A stage is built in `NAME.partial` and renamed when it is complete, so a folder called `NAME` is always whole. A
    stage made from other inputs is moved aside, never deleted. Works under several processes, all of which must ask
    for the same stages in the same order. The folder is this run's own until its process ends, however it ends.

    Args:
        output_dir: Where the stages leave their folders; created if missing.

    Raises:
        RuntimeError: If another run has the folder, naming its process; if the processes are not those that the
            launcher was asked for, see [`check_launch`].
    """

    def __init__(self, output_dir: str | Path):
        self.output_dir, self.state = Path(output_dir), launched_processes()
        if self.state.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        claim_folder(self.output_dir)

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        after: list[Stage],
        build: Callable[[Path], None],
        every_process: bool = False,
    ) -> Stage:
        """Returns the stage, built if it is not there or its inputs changed.

        Args:
            name: Name of the stage and of its folder.
            inputs: Everything the result depends on besides earlier stages, JSON-serialisable.
            after: The stages whose results it reads.
            build: Called with the folder to fill, which may hold the beginnings that a killed run left.
            every_process: Whether all processes take part in building (training) or the main one alone.
        """
        stage, is_there = self.look(name, inputs, after)
        (is_there,) = broadcast_object_list([is_there])  # as the main process sees it, so that all do the same
        if is_there:
            self.state.print(f"[{name}] already there, unchanged: {stage.folder}")
        else:
            self._build(stage, _content(inputs, after), build, every_process)
        return stage

    def _build(
        self, stage: Stage, content: Mapping[str, Any], build: Callable[[Path], None], every_process: bool
    ) -> None:
        name, partial = stage.folder.name, stage.folder.with_name(f"{stage.folder.name}.partial")
        if self.state.is_main_process:
            for folder in _outdated(stage, partial):
                _move_aside(folder)
            state = "continues" if partial.exists() else "starts"
            partial.mkdir(exist_ok=True)
            described = json.dumps({"fingerprint": stage.fingerprint, **content}, indent=2, default=str)
            write_atomically(partial / STAGE_FILE, described + "\n")
            print(f"[{name}] {state}", flush=True)
        self.state.wait_for_everyone()
        if every_process or self.state.is_main_process:
            build(partial)
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            partial.rename(stage.folder)
        self.state.wait_for_everyone()

    def look(self, name: str, inputs: Mapping[str, Any], after: list[Stage]) -> tuple[Stage, bool]:
        """The stage that [`run`] would return for these arguments, and whether it is there already."""
        content = json.dumps(_content(inputs, after), sort_keys=True, default=str)
        stage = Stage(self.output_dir / name, hashlib.sha256(content.encode()).hexdigest())
        return stage, _fingerprint(stage.folder) == stage.fingerprint


def _content(inputs: Mapping[str, Any], after: list[Stage]) -> dict[str, Any]:
    return {"inputs": dict(inputs), "after": [stage.fingerprint for stage in after]}


def _fingerprint(folder: Path) -> str | None:
    try:
        return json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))["fingerprint"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def _outdated(stage: Stage, partial: Path) -> list[Path]:
    """What was made from other inputs and is in the way of the stage."""
    found = [stage.folder] if stage.folder.exists() else []
    # A kill right at a stage's start leaves a folder without its file, in which nothing has been built.
    begun = partial.exists() and any(path.name != f"{STAGE_FILE}.tmp" for path in partial.iterdir())
    return [*found, partial] if begun and _fingerprint(partial) != stage.fingerprint else found


def _move_aside(folder: Path) -> None:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    logger.warning("%s was made from other inputs; it is kept as %s.", folder, aside.name)
    shutil.move(folder, aside)
