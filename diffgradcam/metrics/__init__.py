"""MEASURE: attack detection, how well maps match human ones, how much two maps look alike, how faithful they are.

Open-set splits, in which whole groups (attack types, sites, devices) are held out, need nothing from here:
``sklearn.model_selection.LeaveOneGroupOut().split(images, labels, groups=attack_types)`` gives one split per group.
Bona fide images then need groups too, since a test set of attacks alone has no AUROC: give each of them, at random,
one of the attack types, and every split holds out one attack type with its share of the bona fide images.
"""

from .attack_detection import (
    PairedComparison,
    Spread,
    accuracy,
    acer,
    apcer,
    apcer_at_bpcer,
    auroc,
    bootstrap_interval,
    bpcer,
    eer,
    mean_and_spread,
    mean_interval,
    paired_comparison,
)
from .faithfulness import Curve, Road, average_drop, average_gain, average_increase, deletion, insertion, road
from .imputation import noisy_linear_imputation
from .localization import energy_in_mask, iou_at_matched_area, pointing_game
from .sanity import Randomization, label_randomization, model_randomization
from .sensitivity import infidelity, max_sensitivity, remove_box
from .similarity import cosine, pearson, rmse, spearman, ssim

__all__ = [
    "Curve",
    "PairedComparison",
    "Randomization",
    "Road",
    "Spread",
    "accuracy",
    "acer",
    "apcer",
    "apcer_at_bpcer",
    "auroc",
    "average_drop",
    "average_gain",
    "average_increase",
    "bootstrap_interval",
    "bpcer",
    "cosine",
    "deletion",
    "eer",
    "energy_in_mask",
    "infidelity",
    "insertion",
    "iou_at_matched_area",
    "label_randomization",
    "max_sensitivity",
    "mean_and_spread",
    "mean_interval",
    "model_randomization",
    "noisy_linear_imputation",
    "paired_comparison",
    "pearson",
    "pointing_game",
    "remove_box",
    "rmse",
    "road",
    "spearman",
    "ssim",
]
