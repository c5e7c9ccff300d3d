"""The terms of the loss. L = sum_t w_t [classification_t + BN matching_t] + priors; each file is one term."""

from ensemble.objectives.bn_matching import BNMatching
from ensemble.objectives.classification import ClassScore, CrossEntropy, LogitsObjective
from ensemble.objectives.formulation import Formulation
from ensemble.objectives.image_priors import ImagePrior, L2Prior, TotalVariation

__all__ = [
    "BNMatching",
    "ClassScore",
    "CrossEntropy",
    "Formulation",
    "ImagePrior",
    "L2Prior",
    "LogitsObjective",
    "TotalVariation",
]
