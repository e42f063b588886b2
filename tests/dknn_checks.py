"""A DkNN over the tests' tiny images, and its vote counted by hand."""

import torch
from tiny_images import tiny_resnet

from editable_hf.baselines.dknn import DkNNForImageClassification
from editable_hf.core import ClassConstraint

NUM_QUERIES = 23


def build(references, layers=("chain2", "chain3"), k=5, backbone=tiny_resnet, **options):
    return DkNNForImageClassification.from_backbone(backbone(), references, layers, k, progress=None, **options)


def pixels(rows):
    return torch.stack([row["pixel_values"] for row in rows])


def constraint(row, target):
    return ClassConstraint({"pixel_values": row["pixel_values"].unsqueeze(0)}, target)


def vote_counts(model, logits):
    """Without what puts classes with as many votes in order."""
    return (logits * model.config.k * len(model.config.layers) + 1e-4).floor().long()


def predictions_by_hand(neighbors, similarities, labels):
    """Most votes; then the larger sum of similarities."""
    classes = []
    for indices, values in zip(neighbors.flatten(1).tolist(), similarities.flatten(1).tolist(), strict=True):
        score = {}
        for index, value in zip(indices, values, strict=True):
            votes, total = score.get(int(labels[index]), (0, 0.0))
            score[int(labels[index])] = (votes + 1, total + value)
        classes.append(max(score, key=score.get))
    return classes
