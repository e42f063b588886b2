"""What is wrong with data is said: what was expected, what arrived, what to do. Nothing on disk changes."""

from __future__ import annotations

import gzip
import shutil

import pytest
import torch
from damage import check_refused, nothing, remove, write
from datasets import Dataset
from tiny_images import tiny_resnet
from tiny_models import marian_config
from transformers import MarianMTModel

from editable_hf import (
    ClassConstraint,
    edit,
    load_image_data,
    load_translation_data,
    make_edit_requests,
    read_edit_requests,
    request_constraint,
    rmsprop,
)
from editable_hf.data import text_lines
from editable_hf.data.image_requests import ImageEditRequests, make_image_requests
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
    return load_image_data("folder", path=folder / "images")


# name: (damage, call, exception, message)
CASES = {
    "corpus: no folder": (lambda folder: shutil.rmtree(folder / "corpus"), corpus(), OSError, "corpus"),
    "corpus: empty folder": (
        lambda folder: [path.unlink() for path in (folder / "corpus").iterdir()],
        corpus(),
        FileNotFoundError,
        "train",
    ),
    "corpus: a language is missing": (remove("corpus/test.en"), corpus(), FileNotFoundError, "Expected test.en.*add"),
    "corpus: a split is missing": (
        lambda folder: [(folder / f"corpus/valid.{language}").unlink() for language in ("de", "en")],
        corpus(),
        FileNotFoundError,
        "validation",
    ),
    "corpus: uneven": (write("corpus/train.en", "a dog .\n"), corpus(), ValueError, "3 lines.*1"),
    "corpus: an empty line": (write("corpus/train.en", "a .\n\nb .\n"), corpus(), ValueError, "line 2"),
    "corpus: an empty file": (write("corpus/train.en", ""), corpus(), ValueError, "train.en"),
    "corpus: not UTF-8": (
        write("corpus/train.en", b"a\nb\xe4\nc\n"),
        corpus(),
        ValueError,
        "UTF-8, but line 2.*iconv",
    ),
    "corpus: binary": (write("corpus/train.en", bytes(range(256))), corpus(), ValueError, "UTF-8, but line"),
    "corpus: subwords": (
        write("corpus/train.de", "ei@@ n .\nzw@@ ei .\ndr@@ ei .\n"),
        corpus(),
        ValueError,
        "cut into subword units.*before BPE",
    ),
    "corpus: cut .gz": (
        lambda folder: (
            (folder / "corpus/train.en").unlink(),
            (folder / "corpus/train.en.gz").write_bytes(gzip.compress(b"a\nb\nc\n")[:-6]),
        ),
        corpus(),
        ValueError,
        "whole .gz file, but it is cut short",
    ),
    "corpus: twice": (
        write("corpus/train.en.gz", gzip.compress(b"a\nb\nc\n")),
        corpus(),
        ValueError,
        "one version of train.en.*remove all but one",
    ),
    "corpus: other language": (nothing, corpus(target_lang="fr"), FileNotFoundError, "fr"),
    "corpus: unknown split name": (
        nothing,
        corpus(split_names={"train": "training"}),
        (ValueError, OSError),
        "training",
    ),
    "corpus: negative limit": (
        nothing,
        corpus(max_train_samples=-1),
        ValueError,
        "limit for .* is -1; raise `max_train_samples`",
    ),
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
    "requests: not JSON": (write("requests.jsonl", "source\ttarget\n"), requests_of, ValueError, "line 1: expected"),
    "requests: no target": (write("requests.jsonl", '{"source": "a"}\n'), requests_of, ValueError, "target"),
    "requests: not UTF-8": (
        write("requests.jsonl", b'{"source": "\xe4"}'),
        requests_of,
        ValueError,
        "UTF-8, but line 1",
    ),
    "requests: empty file": (
        write("requests.jsonl", "\n"),
        requests_of,
        ValueError,
        "at least one sentence",
    ),
    "requests: empty source": (
        nothing,
        lambda folder: make_edit_requests(None, None, ["  "], targets=["a"]),
        ValueError,
        "source of edit request 0 is empty",
    ),
    "requests: none": (
        nothing,
        lambda folder: make_edit_requests(None, None, []),
        ValueError,
        "at least one sentence",
    ),
    "requests: fewer targets": (
        nothing,
        lambda folder: make_edit_requests(None, None, ["a", "b"], targets=["a"]),
        ValueError,
        "2 sources but 1 targets",
    ),
    "constraint: no source": (nothing, constraint_of(input_ids=[]), ValueError, "empty source"),
    "constraint: no target": (nothing, constraint_of(labels=[]), ValueError, "target"),
    "constraint: no alternative": (nothing, constraint_of(alternatives=[]), ValueError, "alternative"),
    "constraint: the target alone": (nothing, constraint_of(alternatives=[[6, 2]]), ValueError, "alternative"),
    "constraint: too long": (nothing, constraint_of(labels=[6] * 99), ValueError, "99|long"),
    "image requests: unknown class": (
        nothing,
        lambda folder: edit(
            tiny_resnet(), ClassConstraint({"pixel_values": torch.zeros(1, 3, 8, 8).double()}, 9), rmsprop(1e-3), "all"
        ),
        ValueError,
        "a class from 0 to 4, got 9",
    ),
    "image requests: more than images": (
        nothing,
        lambda folder: make_image_requests([0, 1, 0], 2, 4, seed=0),
        ValueError,
        "4",
    ),
    "image requests: a single class": (
        nothing,
        lambda folder: make_image_requests([0, 0, 0], 1, 1, seed=0),
        ValueError,
        "class",
    ),
    "image requests: index beyond the images": (
        nothing,
        lambda folder: ImageEditRequests(
            [{"pixel_values": 0, "labels": 0}], requests=Dataset.from_list([{"image_index": 7, "target": 1}])
        ),
        ValueError,
        "7; give the split",
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
    "images: unknown source": (nothing, lambda folder: load_image_data("imagenet22k"), ValueError, "imagenet22k"),
    "requests: half of a surrogate pair": (
        write("requests.jsonl", '{"source": "\\ud800", "target": "a"}\n'),
        requests_of,
        ValueError,
        "line 1: expected",
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
