import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from editable_hf.core.constraints import SequenceConstraint
from editable_hf.core.functional import FunctionalModel
from editable_hf.core.prefix_trie import PrefixTrie, head_from

START = 9
rows_of_ids = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8)


def padded(rows, pad):
    length = max(map(len, rows))
    ids = torch.tensor([[START, *row, *[pad] * (length - len(row))] for row in rows])
    mask = torch.tensor([[True] * (1 + len(row)) + [False] * (length - len(row)) for row in rows])
    return ids, mask


@given(rows=rows_of_ids, pad=st.integers(0, 2))  # the padding may look like a token
def test_nodes_are_the_distinct_prefixes(rows, pad):
    ids, mask = padded(rows, pad)
    trie = PrefixTrie.build(ids, mask)
    assert trie.shape == tuple(ids.shape) and trie.node.shape == ids.shape
    length = ids.shape[1]
    distinct = {}  # prefix -> flat index of its first occurrence
    for row, column in mask.nonzero().tolist():
        distinct.setdefault(tuple(ids[row, : column + 1].tolist()), row * length + column)
    assert len(trie.positions) == len(distinct)
    for row, column in mask.nonzero().tolist():
        position = int(trie.positions[trie.node[row, column]])
        assert position == distinct[tuple(ids[row, : column + 1].tolist())]
    assert trie.node.min() >= 0 and trie.node.max() < len(trie.positions)


def constraint_of(model, inputs, target, alternatives, **options):
    config = model.config
    return SequenceConstraint.from_ids(
        inputs,
        target,
        alternatives,
        decoder_start_token_id=config.decoder_start_token_id,
        pad_token_id=config.pad_token_id,
        **options,
    )


def source_of(length):
    source = torch.arange(5, 5 + length).unsqueeze(0)
    source[0, -1] = 2
    return {"input_ids": source, "attention_mask": torch.ones_like(source)}


def plain_scores(model, inputs, rows):
    return torch.stack(
        [reference.sequence_score(model, inputs, ids, model.config.decoder_start_token_id) for ids in rows]
    )


def tolerance_of(model):
    return 1e-5 if model.config.model_type == "t5" else 1e-11  # T5's layer norm has a part in float32


ROWS = {
    "different lengths": [[11, 12, 2], [13, 14, 15, 16, 2], [2], [11, 17, 2]],
    "shared prefixes": [[11, 12, 13, 2], [11, 12, 14, 2], [11, 12, 13, 15, 16, 2], [11, 2]],
    "one a prefix of another": [[11, 12], [11, 12, 13], [11, 12, 13, 14], [11]],
    "same but the last token": [[11, 12, 13, 2], [11, 12, 13, 3], [11, 12, 13, 4]],
    "padding token inside": [[11, 1, 12, 2], [11, 1, 13, 2], [1, 1, 2], [0, 0, 2]],
    "as many rows as tokens": [[11, 12, 13, 2], [11, 14, 2], [15, 2], [11, 12, 2]],
    "two tokens": [[11, 2], [12, 2]],
    "one token": [[11], [12]],
}


@pytest.mark.parametrize("source_length", ["other", "of the rows", "one more", "number of rows"])
@pytest.mark.parametrize("kind", ROWS)
def test_scores_are_those_of_the_rows_one_by_one(seq2seq, kind, source_length):
    rows, model = ROWS[kind], seq2seq.eval()
    length = max(map(len, rows))
    length = {"other": 9, "of the rows": length, "one more": length + 1, "number of rows": len(rows)}[source_length]
    inputs = source_of(length)
    constraint = constraint_of(model, inputs, rows[0], rows[1:])
    names = [name for name, _ in model.named_parameters()][-2:]
    functional_model = FunctionalModel(model, names)
    with torch.no_grad():
        expected = plain_scores(model, inputs, rows)
        for _ in range(2):  # recorded, then replayed
            scores = constraint.scores(functional_model, {name: model.get_parameter(name) for name in names})
            torch.testing.assert_close(scores, expected, rtol=0, atol=tolerance_of(model))


def test_padded_source(marian):
    inputs = source_of(6)
    inputs["attention_mask"][0, 4:] = 0
    rows = ROWS["shared prefixes"]  # of the length of the source
    constraint = constraint_of(marian.eval(), inputs, rows[0], rows[1:])
    with torch.no_grad():
        scores = constraint.scores(FunctionalModel(marian, []), {})
        torch.testing.assert_close(scores, plain_scores(marian, inputs, rows), rtol=0, atol=1e-11)


def test_rows_and_source_may_fill_all_positions_of_the_decoder(marian):
    limit = marian.config.max_position_embeddings
    inputs = source_of(limit)
    rows = [[*range(3, 3 + limit - 1), 2], [*range(4, 4 + limit - 1), 2]]
    constraint = constraint_of(marian.eval(), inputs, rows[0], rows[1:], max_length=limit)
    model, params = FunctionalModel(marian, []), {}
    with torch.no_grad():
        expected = plain_scores(marian, inputs, rows)
        torch.testing.assert_close(constraint.scores(model, params), expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(constraint(model, params), expected[1] - expected[0], rtol=0, atol=1e-10)


def test_linear_layers_see_each_prefix_once_and_the_source_once(marian):
    rows, seen = ROWS["shared prefixes"], {"head": [], "fc1": [], "cross": []}
    layer = marian.model.decoder.layers[0]
    modules = {"head": marian.lm_head, "fc1": layer.fc1, "cross": layer.encoder_attn.k_proj}
    for name, module in modules.items():
        # Its own forward, within what `shared_by_rows` puts around it.
        module.forward = lambda hidden, own=module.forward, shapes=seen[name]: (
            shapes.append(hidden.shape) or own(hidden)
        )
    constraint = constraint_of(marian.eval(), source_of(9), rows[0], rows[1:])
    constraint.scores(FunctionalModel(marian, []), {})
    num_prefixes = len({(*row[:end],) for row in rows for end in range(len(row))})
    assert num_prefixes == 7
    assert seen == {"head": [(7, 16)], "fc1": [(7, 16)], "cross": [(1, 9, 16)]}


def test_head_that_is_not_called_as_a_module(marian):
    rows = ROWS["shared prefixes"]

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.lm_head, self.weight = marian.lm_head, marian.lm_head.weight

        def forward(self, hidden):
            return hidden @ self.weight.T

    inputs = source_of(5)
    with torch.no_grad():
        expected = plain_scores(marian.eval(), inputs, rows)
        marian.lm_head = Functional()
        constraint = constraint_of(marian, inputs, rows[0], rows[1:])
        model = FunctionalModel(marian, [])
        torch.testing.assert_close(constraint.scores(model, {}), expected, rtol=0, atol=1e-11)
        torch.testing.assert_close(constraint(model, {}), expected[1:].max() - expected[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("start", [0, 1, 3])
def test_head_from(seq2seq, start):
    model = seq2seq.eval()
    inputs = {**source_of(5), "decoder_input_ids": torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]]), "use_cache": False}
    whole = model(**inputs).logits
    with head_from(model, start):
        logits = model(**inputs).logits
    torch.testing.assert_close(logits, whole[:, start:], rtol=0, atol=1e-12)
    assert not [module for module in model.modules() if "forward" in vars(module)]
    assert torch.equal(model(**inputs).logits, whole)


class FlatHead(nn.Module):
    """Flattens what it gives to its output layer, as some models do before a loss."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 7)

    def get_output_embeddings(self):
        return self.head

    def forward(self, hidden):
        return self.head(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)


def test_head_from_leaves_other_shapes_alone():
    model, hidden = FlatHead(), torch.randn(2, 3, 4)
    expected = model(hidden)
    with head_from(model, 1):
        assert torch.equal(model(hidden), expected)


def test_exception_leaves_no_patched_forward(marian):
    trie = PrefixTrie.build(torch.tensor([[1, 2]]), torch.tensor([[True, True]]))
    for block in (trie.shared_by_rows(marian), head_from(marian, 1)):
        with pytest.raises(KeyError), block:
            assert [module for module in marian.modules() if "forward" in vars(module)]
            raise KeyError
        assert not [module for module in marian.modules() if "forward" in vars(module)]
