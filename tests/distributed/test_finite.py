"""NaN in training on two processes, one of which meets it."""

from __future__ import annotations

import re

import pytest
import torch
from launcher import launch

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What both processes saved, by set-up; `None` of the process that the last one ended from outside."""
    folder = tmp_path_factory.mktemp("finite")
    with pytest.raises(AssertionError) as end:
        launch(2, "finite_worker.py", folder)
    saved = {path.stem: torch.load(path) for path in folder.glob("*.pt")}
    assert "edit_raises-1" in saved, end.value  # it was another end
    names = {stem.rsplit("-", 1)[0] for stem in saved}
    return {name: [saved.get(f"{name}-{rank}") for rank in range(2)] for name in names}


def test_both_end_with_the_update_and_their_requests(results):
    for rank, term in enumerate([r"\.", "; base_loss is nan"]):
        saved = results["batch_raises"][rank]
        assert re.match(rf"The gradient is not finite in update 2, .* requests \[7{rank}\]{term}", saved["message"])
        assert len(saved["logs"]) == 1 and all(value.isfinite().all() for value in saved["parameters"].values())


def test_edit_that_raises_ends_the_process_that_waits(results):
    waiting, raising = results["edit_raises"]
    assert waiting is None
    assert raising["message"].startswith("The edit for request 71 failed in update 1: l_e is nan")
