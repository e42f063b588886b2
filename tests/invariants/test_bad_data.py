"""What is wrong with data is said: what was expected, what arrived, what to do. Nothing on disk changes."""

from __future__ import annotations

import gzip
import shutil

import pytest
import torch
from damage import check_refused, nothing, remove, write
from tiny_images import tiny_resnet
from tiny_models import marian_config
from transformers import MarianMTModel

from editable_hf import (
    ClassConstraint,
    edit,
    load_image_data,
    load_translation_data,
    read_edit_requests,
    request_constraint,
    rmsprop,
)
from editable_hf.data import text_lines
from editable_hf.data.tokenizer import train_tokenizer


def corpus(**options):
    return lambda folder: load_translation_data(str(folder / "corpus"), **options)


def requests_of(folder):
    model = MarianMTModel.from_pretrained(folder / "model", attn_implementation="eager")
    return read_edit_requests(folder / "requests.jsonl", model, None)


def constraint_of(**request):
    usual = {"input_ids": [5, 2], "labels": [6, 2], "alternatives": [[7, 2]]}
    return lambda folder: request_constraint({**usual, **request}, MarianMTModel(marian_config()))


def images_of(folder):
    return load_image_data(str(folder / "images"))


# name: (damage, call, exception, message)
CASES = {
    "corpus: no folder": (lambda folder: shutil.rmtree(folder / "corpus"), corpus(), OSError, "corpus"),
    "corpus: empty folder": (
        lambda folder: [path.unlink() for path in (folder / "corpus").iterdir()],
        corpus(),
        FileNotFoundError,
        "train",
    ),
    "corpus: a split is missing": (
        lambda folder: [(folder / f"corpus/valid.{language}").unlink() for language in ("de", "en")],
        corpus(),
        FileNotFoundError,
        "validation",
    ),
    "corpus: binary": (write("corpus/train.en", bytes(range(256))), corpus(), ValueError, "UTF-8, but line"),
    "corpus: other language": (nothing, corpus(target_lang="fr"), FileNotFoundError, "fr"),
    "tokenizer: no text": (nothing, lambda folder: train_tokenizer([], 100), ValueError, "text"),
    "tokenizer: vocabulary too large": (
        nothing,
        lambda folder: train_tokenizer(["a b"], 5000),
        ValueError,
        "vocab_size",
    ),
    "tokenizer: vocabulary too small": (
        nothing,
        lambda folder: train_tokenizer(["a b c"], 2),
        ValueError,
        "vocab_size",
    ),
    "requests: no file": (remove("requests.jsonl"), requests_of, FileNotFoundError, "requests.jsonl"),
    "constraint: too long": (nothing, constraint_of(labels=[6] * 99), ValueError, "99|long"),
    "image requests: unknown class": (
        nothing,
        lambda folder: edit(
            tiny_resnet(), ClassConstraint({"pixel_values": torch.zeros(1, 3, 8, 8).double()}, 9), rmsprop(1e-3), "all"
        ),
        ValueError,
        "a class from 0 to 4, got 9",
    ),
    "images: no folder": (lambda folder: shutil.rmtree(folder / "images"), images_of, FileNotFoundError, "images"),
    "images: no validation": (
        lambda folder: shutil.rmtree(folder / "images/val"),
        images_of,
        (ValueError, OSError),
        "val",
    ),
    "images: an empty class": (
        lambda folder: (folder / "images/train/cat/1.png").unlink(),
        images_of,
        (ValueError, OSError),
        "cat",
    ),
    "images: unknown source": (
        nothing,
        lambda folder: load_image_data("imagenet22k"),
        FileNotFoundError,
        "imagenet22k",
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_is_refused_with_a_reason(name, valid, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check_refused(CASES[name], valid, tmp_path / "input")


def test_text_that_unpacks_to_more_than_anybody_has(tmp_path, monkeypatch):
    monkeypatch.setattr(text_lines, "MAX_BYTES", 10_000)
    path = tmp_path / "train.de.gz"
    path.write_bytes(gzip.compress(bytes(1_000_000)))
    with pytest.raises(ValueError, match="at most 10,000 bytes of text, but it has more"):
        text_lines.read_lines(path)
