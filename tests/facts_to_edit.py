"""Facts that the tiny causal models of the tests are asked for."""

from __future__ import annotations

import torch

from editable_hf import ContinuationConstraint, JointConstraint

# The last linear layer of the first block's feed-forward network.
DOWN = {
    "llama": "model.layers.0.mlp.down_proj.weight",
    "gpt2": "transformer.h.0.mlp.c_proj.weight",
    "bloom": "transformer.h.0.mlp.dense_4h_to_h.weight",
    "opt": "model.decoder.layers.0.fc2.weight",
}
# Of different lengths, with their targets too.
PROMPTS = [[0, 5, 9, 12], [0, 7, 20, 21, 8, 11], [0, 30, 6]]
TARGETS = [[13, 4], [25], [17, 18, 19]]
# Ordinary text, and a neutral prompt about the subject of the first fact, whose last token is 9.
TEXTS = torch.randint(3, 40, (60, 12), generator=torch.Generator().manual_seed(1)).tolist()
ESSENCE = ([0, 5, 9, 22], 2)


def fact(index):
    """A fact of which no model knows anything, with an alternative as long as the longest target."""
    return ContinuationConstraint.from_ids(PROMPTS[index], TARGETS[index], [[33, 34, 35], [36]], pad_token_id=1)


def all_facts():
    return JointConstraint([fact(index) for index in range(len(PROMPTS))])


def target_nll(model, index):
    """Minus the log-probability of a target, the mean over its tokens, written out."""
    prompt, target = PROMPTS[index], TARGETS[index]
    log_probs = model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
    return -sum(log_probs[len(prompt) - 1 + i, token] for i, token in enumerate(target)) / len(target)


def states(model, layer, ids):
    """What enters and what leaves a module, `(length, width)` each, and the logits."""
    found = []

    def keep(_, args, output):
        found.append((args[0], output[0] if isinstance(output, tuple) else output))

    hook = model.get_submodule(layer).register_forward_hook(keep)
    logits = model(torch.tensor([ids])).logits[0]
    hook.remove()
    return *(each.detach().view(len(ids), -1) for each in found[0]), logits


def change_of(result, model, layer):
    """What an edit added to a weight, `(out_features, in_features)`."""
    change = result.params[layer] - model.get_parameter(layer).detach()
    return change if change.shape[0] == 16 else change.T
