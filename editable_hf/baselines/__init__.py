"""What Editable Training is compared with: the baselines of section 4.1 (Table 3), fine-tuning on the corrected
example, a closed-form edit of classifiers, and the editors of facts in decoder-only language models."""

from editable_hf.baselines.cnp import CNPConfig, CNPForImageClassification, ConditionEncoder
from editable_hf.baselines.dknn import DkNNConfig, DkNNForImageClassification, flip_labels
from editable_hf.baselines.ewc import EWC_WEIGHTS, diagonal_fisher, ewc, normalize_fisher
from editable_hf.baselines.fine_tuning import fine_tune, ft_l, loc_ft
from editable_hf.baselines.grace import Grace
from editable_hf.baselines.key_covariance import KeyCovariance, key_covariances
from editable_hf.baselines.lora import lora
from editable_hf.baselines.memit import memit
from editable_hf.baselines.mend import Mend, MendExample, train_mend
from editable_hf.baselines.rank_one import feature_moment, rank_one
from editable_hf.baselines.rome import rome
from editable_hf.baselines.ultra_edit import UltraEdit
from editable_hf.baselines.value_search import ValueSearch

__all__ = [
    "EWC_WEIGHTS",
    "CNPConfig",
    "CNPForImageClassification",
    "ConditionEncoder",
    "DkNNConfig",
    "DkNNForImageClassification",
    "Grace",
    "KeyCovariance",
    "Mend",
    "MendExample",
    "UltraEdit",
    "ValueSearch",
    "diagonal_fisher",
    "ewc",
    "feature_moment",
    "fine_tune",
    "flip_labels",
    "ft_l",
    "key_covariances",
    "loc_ft",
    "lora",
    "memit",
    "normalize_fisher",
    "rank_one",
    "rome",
    "train_mend",
]
