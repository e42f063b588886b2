"""Whether translations from a prefix memo are those of plain `generate`."""

from __future__ import annotations

import torch

from editable_hf.core.editing import edited
from editable_hf.core.selection import select_parameters
from editable_hf.evaluation.memo_translator import MemoTranslator
from editable_hf.evaluation.translator import Translator

BATCH = 3
LAST = "last_decoder_layer"


def perturb(model, layers, scales, seed=0):
    """Edits of growing size, in random directions."""
    generator = torch.Generator().manual_seed(seed)
    params = select_parameters(model, layers)
    return [
        {
            name: p.detach() + scale * (p.std(correction=0) + 0.05) * torch.randn(p.shape, generator=generator).to(p)
            for name, p in params.items()
        }
        for scale in scales
    ]


def translator_of_tokens(model, tokenizer, sources, num_beams=2, ratio=0.3):
    """A translator that gives token ids without the padding at the end, in place of text."""
    options = {"batch_size": BATCH, "max_length_ratio": ratio}
    translator = Translator(model, tokenizer, sources, num_beams=num_beams, **options)

    def decode(number, sequences):
        rows = ["-".join(map(str, row)).removesuffix("-1" * row[1:].count(1)) for row in sequences.tolist()]
        return zip(translator._indices[number], rows, strict=True)

    translator.decode = decode
    return translator


def stock(translator, edits):
    """Plain `generate`, from the sources on, with each edit."""
    outputs = []
    for edit in edits:
        rows = {}
        with edited(translator.model, edit):
            for number, batch in enumerate(translator._batches):
                sequences = translator.model.generate(
                    **batch,
                    num_beams=translator.num_beams,
                    do_sample=False,
                    early_stopping=translator.num_beams > 1,
                    max_new_tokens=translator._max_new_tokens[number],
                )
                rows.update(translator.decode(number, sequences))
        outputs.append([rows[index] for index in range(translator.num_sentences)])
    return outputs


def check(model, tokenizer, sources, layers, num_beams=2):
    translator = translator_of_tokens(model, tokenizer, sources, num_beams)
    edits, memo = perturb(model, layers, (0.0, 0.3, 3.0)), MemoTranslator(translator, layers, edits_together=2)
    outputs, expected = memo(edits), stock(translator, edits)
    assert outputs == expected
    assert outputs[0] == translator() and len({tuple(rows) for rows in outputs}) > 1
    return memo
