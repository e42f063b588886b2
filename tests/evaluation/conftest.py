from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_models import bart_config
from transformers import BartForConditionalGeneration

from editable_hf.core import Editor, rprop


@pytest.fixture
def one_by_one():
    """Plain generate, one sentence at a time; only the limit of the batch that it falls into is taken over."""

    def translate(model, tokenizer, sources, num_beams, batch_size):
        lengths = {index: len(tokenizer(source)["input_ids"]) for index, source in enumerate(sources)}
        order = sorted(lengths, key=lengths.get)
        translations = {}
        for place, index in enumerate(order):
            longest = max(lengths[i] for i in order[place // batch_size * batch_size :][:batch_size])
            output = model.generate(
                **tokenizer([sources[index]], return_tensors="pt"),
                num_beams=num_beams,
                do_sample=False,
                early_stopping=True,
                max_new_tokens=min(int(1.5 * longest) + 10, 39),
            )
            translations[index] = tokenizer.decode(output[0], skip_special_tokens=True)
        return [translations[index] for index in range(len(sources))]

    return translate


@pytest.fixture
def sources(sentence_pairs):
    # Of many lengths, one of them twice in a batch; the last batch is not full.
    sources = sentence_pairs[0]
    return [sources[1], "ein", f"{sources[2]} {sources[3]}", sources[4], "der hund", sources[1], *sources[5:7]]


@pytest.fixture(scope="module")
def bart_template(tokenizer):
    config = bart_config()
    config.vocab_size, config.decoder_layers = len(tokenizer), 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BartForConditionalGeneration(config).double().eval()
    model.final_logits_bias.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    model.final_logits_bias[0, tokenizer.eos_token_id] = 2.5  # ends somewhere between the first and the last step
    return model


@pytest.fixture
def bart(bart_template):
    """A random BART of three decoder layers in float64, with biases on its logits."""
    return copy.deepcopy(bart_template)


@pytest.fixture
def breaking_editor():
    """RProp with steps of 1e-6, whose third step is infinite."""
    plain = rprop(1e-6)

    def update(grads, number):
        updates, _ = plain.update(grads, plain.init(grads))
        return {name: value * (math.inf if number == 3 else 1) for name, value in updates.items()}, number + 1

    return Editor(lambda params: 1, update)
