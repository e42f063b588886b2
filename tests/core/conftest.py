from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny_models import bart_config, t5_config
from torch import nn
from transformers import BartForConditionalGeneration, T5ForConditionalGeneration

SOURCE = [[5, 6, 7, 8, 2]]
TARGET = [11, 12, 2]
ALTERNATIVES = [[13, 14, 15, 2], [16, 2], [11, 17, 18, 19, 2]]


class Classifier(nn.Module):
    """Three layers, called and answering as Hugging Face classifiers do."""

    def __init__(self, batch_norm: bool = False):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(0.5)
        self.second = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, features):
        hidden = torch.tanh(self.norm(self.first(features)))
        return SimpleNamespace(logits=self.head(torch.tanh(self.second(self.dropout(hidden)))))


def _seeded(build):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build()


@pytest.fixture
def classifier():
    return _seeded(Classifier).double()


@pytest.fixture
def batch_norm_classifier():
    return _seeded(lambda: Classifier(batch_norm=True)).double()


@pytest.fixture(scope="session")
def seq2seq_templates(marian_template):
    return {
        "marian": marian_template,
        "bart": _seeded(lambda: BartForConditionalGeneration(bart_config())),
        "t5": _seeded(lambda: T5ForConditionalGeneration(t5_config())),
    }


@pytest.fixture(params=["marian", "bart", "t5"])
def seq2seq(request, seq2seq_templates):
    return copy.deepcopy(seq2seq_templates[request.param]).double()


@pytest.fixture
def marian(tiny_marian):
    return tiny_marian.double()


@pytest.fixture
def request_ids():
    """One edit request as plain numbers: inputs of the encoder, target, alternatives."""
    source = torch.tensor(SOURCE)
    inputs = {"input_ids": source, "attention_mask": torch.ones_like(source)}
    return SimpleNamespace(inputs=inputs, target=TARGET, alternatives=ALTERNATIVES)
