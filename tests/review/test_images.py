"""What a patch of an image classifier changes, against classifying twice by hand."""

from __future__ import annotations

import base64
import io

import pytest
import torch
from patches.patch_checks import made_up_result
from tiny_images import NUM_CLASSES, image_rows, tiny_resnet

from editable_hf import edited
from editable_hf.review.images import picture_url, review_images
from editable_hf.review.text import format_markdown, format_terminal

NAMES = ["cat", "dog", "frog", "ship", "truck"]


@pytest.fixture(scope="module")
def model():
    return tiny_resnet()


@pytest.fixture(scope="module")
def params(model):
    return made_up_result(model, "chain3", scale=0.1).params


def classify(model, rows):
    with torch.no_grad():
        return model(pixel_values=torch.stack([row["pixel_values"] for row in rows])).logits.argmax(-1)


def test_review_is_that_of_classifying_twice(model, params):
    rows = image_rows(40)
    labels = torch.tensor([row["labels"] for row in rows])
    before = classify(model, rows)
    with edited(model, params):
        after = classify(model, rows)
    different = (before != after).nonzero().squeeze(1).tolist()
    assert 3 < len(different) < 40

    review = review_images(model, params, rows, NAMES, edited_indices=[different[2]], batch_size=7, patch="fix")
    assert (review.num_examples, review.metric, review.kind) == (40, "error rate", "image")
    assert review.before == pytest.approx((before != labels).double().mean().item())
    assert review.after == pytest.approx((after != labels).double().mean().item())
    assert review.drawdown == pytest.approx(abs(review.before - review.after))
    assert review.changes[0].index == different[2] and review.changes[0].edited
    assert sorted(change.index for change in review.changes) == different
    for change in review.changes:
        old, new, label = (part[change.index].item() for part in (before, after, labels))
        assert (change.before, change.after, change.reference) == (NAMES[old], NAMES[new], NAMES[label])
        assert change.effect == ("worse" if old == label else "better" if new == label else "neutral")
    assert torch.equal(classify(model, rows), before)


def test_a_patch_of_0_steps_changes_nothing(model):
    own = {name: param for name, param in model.named_parameters() if name.startswith("linear")}
    review = review_images(model, own, image_rows(10))
    assert review.changes == [] and review.drawdown == 0 and review.share_changed == 0
    assert "0 of 10 predictions changed" in format_terminal(review) and "|" not in format_markdown(review)


def test_pictures_are_small_copies(model, params):
    image = pytest.importorskip("PIL.Image")
    rows = image_rows(20)
    pictures = [image.new("RGB", (400, 200), (index, 0, 0)) for index in range(20)]
    review = review_images(model, params, rows, pictures=pictures)
    assert review.changes[0].before.startswith("LABEL_")  # the names of the model's configuration
    for change in review.changes:
        kind, data = change.picture.split(",")
        assert kind == "data:image/png;base64"
        picture = image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.size == (96, 48) and picture.getpixel((5, 5)) == (change.index, 0, 0)
    assert pictures[0].size == (400, 200)
    assert picture_url(image.new("L", (8, 8))).startswith("data:image/png")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "at least one image, and as many pictures or none, but got 0 images"),
        (image_rows(2), {"pictures": [None]}, "got 2 images and 1 pictures"),
        (image_rows(2), {"params": {}}, r"nothing was given"),
        (image_rows(2), {"params": {"linear.weight": torch.zeros(1, 1)}}, "name and shape of linear.weight"),
        (image_rows(2), {"params": {"nowhere": torch.zeros(NUM_CLASSES)}}, "name and shape of nowhere"),
    ],
)
def test_wrong_arguments(model, params, rows, options, message):
    with pytest.raises(ValueError, match=message):
        review_images(model, **{"params": params, "dataset": rows, **options})
