"""The baselines of section 4.1 (Table 3) that Editable Training is compared with."""

from editable_hf.baselines.cnp import CNPConfig, CNPForImageClassification, ConditionEncoder
from editable_hf.baselines.dknn import DkNNConfig, DkNNForImageClassification, flip_labels
from editable_hf.baselines.ewc import EWC_WEIGHTS, diagonal_fisher, ewc, normalize_fisher

__all__ = [
    "EWC_WEIGHTS",
    "CNPConfig",
    "CNPForImageClassification",
    "ConditionEncoder",
    "DkNNConfig",
    "DkNNForImageClassification",
    "diagonal_fisher",
    "ewc",
    "flip_labels",
    "normalize_fisher",
]
