from __future__ import annotations

import pytest
import torch
from tiny_images import changed_names, image_requests, image_rows, snapshot, tiny_resnet
from torch.nn import functional as F


def base_loss(trainer):
    return trainer.state.log_history[0]["base_loss"]


@pytest.mark.parametrize("frozen", [True, False])
def test_statistics_and_base_loss(make_image_trainer, frozen):
    model = tiny_resnet()
    before, rows = snapshot(model), image_rows(6)
    pixels, labels = torch.stack([row["pixel_values"] for row in rows]), torch.tensor([row["labels"] for row in rows])
    with torch.no_grad():
        expected = F.cross_entropy(model(pixels).logits, labels).item()
    trainer = make_image_trainer(
        model, train_dataset=rows, edit_dataset=image_requests(), freeze_batch_norm=frozen, max_steps=1
    )
    trainer.train()
    changed = changed_names(model, before)
    assert any("running_mean" in name for name in changed) != frozen
    assert "conv1.weight" in changed and "bn1.weight" in changed
    assert (base_loss(trainer) == pytest.approx(expected)) == frozen
