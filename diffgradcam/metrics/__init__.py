"""Metrics: attack detection, agreement of maps with human ones, likeness of two maps, faithfulness of maps.

Faithfulness metrics change images and read a score, so they take an :class:`Evaluator`: the model and what is read.

Open-set splits, in which whole groups (attack types, sites, devices) are held out, are in scikit-learn:
``LeaveOneGroupOut().split(images, labels, groups=attack_types)`` of ``sklearn.model_selection`` gives one split per
group. Bona fide images then need groups too, since a test set of attacks alone has no AUROC. Give each of them one of
the attack types at random, and every split holds out one attack type with its share of the bona fide images.
"""

from .arcc import Arcc, arcc
from .attack_detection import (
    accuracy,
    acer,
    apcer,
    apcer_at_bpcer,
    auroc,
    bootstrap_interval,
    bpcer,
    eer,
)
from .behaviour import (
    Agreement,
    Behaviour,
    DecisionsKept,
    behaviour,
    behaviour_kept,
    decisions_kept,
    honesty,
    integrated_gradients,
    occlusion_drops,
)
from .class_sensitivity import ClassSensitivity, class_sensitivity
from .compactness import compactness
from .evaluator import Evaluator
from .faithfulness import Curve, Road, average_drop, average_gain, average_increase, deletion, insertion, road
from .imputation import noisy_linear_imputation
from .localization import energy_in_mask, iou_at_matched_area, pointing_game
from .noise import NoiseResponse, noise_response
from .quantus import ExplainFunction, quantus_explainer
from .sanity import Randomization, label_randomization, model_randomization
from .sensitivity import infidelity, max_sensitivity, remove_box
from .similarity import cosine, pearson, rank_biased_overlap, rmse, spearman, ssim
from .statistics import PairedComparison, Spread, mean_and_spread, mean_interval, paired_comparison

__all__ = [
    "Agreement",
    "Arcc",
    "Behaviour",
    "ClassSensitivity",
    "Curve",
    "DecisionsKept",
    "Evaluator",
    "ExplainFunction",
    "NoiseResponse",
    "PairedComparison",
    "Randomization",
    "Road",
    "Spread",
    "accuracy",
    "acer",
    "apcer",
    "apcer_at_bpcer",
    "arcc",
    "auroc",
    "average_drop",
    "average_gain",
    "average_increase",
    "behaviour",
    "behaviour_kept",
    "bootstrap_interval",
    "bpcer",
    "class_sensitivity",
    "compactness",
    "cosine",
    "decisions_kept",
    "deletion",
    "eer",
    "energy_in_mask",
    "honesty",
    "infidelity",
    "insertion",
    "integrated_gradients",
    "iou_at_matched_area",
    "label_randomization",
    "max_sensitivity",
    "mean_and_spread",
    "mean_interval",
    "model_randomization",
    "noise_response",
    "noisy_linear_imputation",
    "occlusion_drops",
    "paired_comparison",
    "pearson",
    "pointing_game",
    "quantus_explainer",
    "rank_biased_overlap",
    "remove_box",
    "rmse",
    "road",
    "spearman",
    "ssim",
]
