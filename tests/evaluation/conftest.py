from __future__ import annotations

import pytest


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
