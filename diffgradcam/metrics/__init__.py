"""MEASURE: attack detection, how well maps match human ones, and how much two maps look alike.

Open-set splits, in which whole groups (attack types, sites, devices) are held out, need nothing from here:
``sklearn.model_selection.LeaveOneGroupOut().split(images, labels, groups=attack_types)`` gives one split per group.
Bona fide images then need groups too, since a test set of attacks alone has no AUROC: give each of them, at random,
one of the attack types, and every split holds out one attack type with its share of the bona fide images.
"""

from .classification import (
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
    paired_comparison,
)
from .localization import energy_in_mask, iou_at_matched_area, pointing_game
from .similarity import cosine, pearson, rmse, spearman, ssim

__all__ = [
    "PairedComparison",
    "Spread",
    "accuracy",
    "acer",
    "apcer",
    "apcer_at_bpcer",
    "auroc",
    "bootstrap_interval",
    "bpcer",
    "cosine",
    "eer",
    "energy_in_mask",
    "iou_at_matched_area",
    "mean_and_spread",
    "paired_comparison",
    "pearson",
    "pointing_game",
    "rmse",
    "spearman",
    "ssim",
]
