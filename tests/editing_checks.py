"""Constraints on the tests' tiny models, and whether an edit left a model as it was."""

import reference
import torch

from editable_hf.core import SequenceConstraint


def sequence_constraint(model, request_ids):
    return SequenceConstraint.from_ids(
        request_ids.inputs,
        request_ids.target,
        request_ids.alternatives,
        decoder_start_token_id=model.config.decoder_start_token_id,
        pad_token_id=model.config.pad_token_id,
    )


def oracle_sequence_constraint(model, request_ids):
    start = model.config.decoder_start_token_id
    return lambda copied: reference.sequence_constraint(
        copied, request_ids.inputs, request_ids.target, request_ids.alternatives, start
    )


def features(dtype=torch.float64):
    return torch.linspace(-1, 2, 6, dtype=dtype).unsqueeze(0)


def wrong_class(model):
    return int(model.eval()(features(model.head.weight.dtype)).logits.argmin())


def snapshot(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        {name: tensor.detach().clone() for name, tensor in tensors.items()},
        {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        {name: module.training for name, module in model.named_modules()},
        {name: p.requires_grad for name, p in model.named_parameters()},
    )


def assert_unchanged(model, before):
    tensors, grads, training, requires_grad = snapshot(model)
    assert training == before[2] and requires_grad == before[3]
    assert tensors.keys() == before[0].keys()
    assert all(torch.equal(tensors[name], before[0][name]) for name in tensors)
    for name, grad in grads.items():
        assert (grad is None) == (before[1][name] is None)
        assert grad is None or torch.equal(grad, before[1][name])
