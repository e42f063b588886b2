"""Edits that are decoded together, as on a GPU, against one after another."""

from __future__ import annotations

import pytest
import torch

from editable_hf.core.selection import select_parameters
from editable_hf.evaluation import translator as translating
from editable_hf.evaluation.translator import Translator, edits_together

NUM_EDITS = 5


@pytest.fixture
def edits(bart):
    generator = torch.Generator().manual_seed(0)
    selected = select_parameters(bart, "last_decoder_layer")
    draw = lambda value: torch.randn(value.shape, generator=generator, dtype=value.dtype)  # noqa: E731
    return [{name: (value + 0.2 * draw(value)).detach() for name, value in selected.items()} for _ in range(NUM_EDITS)]


@pytest.fixture
def translate(bart, tokenizer, sources, edits):
    return lambda: Translator(bart, tokenizer, sources, num_beams=3, batch_size=3).after_edits(edits)


def test_translations_are_those_of_one_after_another(translate, monkeypatch):
    expected, rows = translate(), []
    monkeypatch.setattr(translating, "TOGETHER_DEVICES", {"cpu"})
    decode = Translator._decode
    monkeypatch.setattr(Translator, "_decode", lambda self, *args: rows.append(args[1]) or decode(self, *args))
    assert translate() == expected and set(rows) == {NUM_EDITS}
    assert len({tuple(texts) for texts in expected}) > 1


def test_halved_where_memory_ends(translate, monkeypatch):
    expected, rows = translate(), []
    monkeypatch.setattr(translating, "TOGETHER_DEVICES", {"cpu"})
    decode = Translator._decode

    def small(self, number, count):
        rows.append(count)
        if count > 2:
            raise torch.cuda.OutOfMemoryError("full")
        return decode(self, number, count)

    monkeypatch.setattr(Translator, "_decode", small)
    assert translate() == expected
    assert rows[:4] == [5, 2, 2, 1] and 5 not in rows[1:]


def test_how_many_depends_on_memory(bart, monkeypatch):
    names = list(select_parameters(bart, "last_decoder_layer"))
    assert edits_together(bart, names) == 1
    monkeypatch.setattr(translating, "TOGETHER_DEVICES", {"cpu"})
    assert edits_together(bart, names) == 32
    monkeypatch.setattr(translating, "_STACKED_BYTES", 2 * 7 * sum(bart.get_parameter(name).nbytes for name in names))
    assert edits_together(bart, names) == 7
