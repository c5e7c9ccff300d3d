"""Images on which an ensemble of frozen classifiers agrees.

    from ensemble import invert
    results = invert(["resnet20_cifar", "vgg16_bn_slim_cifar"], targets=["cat", "dog"], images_per_class=4)
    results.grid()

What the package offers is imported when it is first used: `import ensemble` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ensemble.api import invert
    from ensemble.data.generated import GeneratedImages
    from ensemble.engine.guard import NotFiniteError
    from ensemble.engine.optimizers import Adam, Optimizer
    from ensemble.image.dead_leaves import DeadLeaves
    from ensemble.image.fixed_generator import CodeSpace, FixedGenerator
    from ensemble.image.fourier import Fourier
    from ensemble.image.generator import Generator
    from ensemble.image.maco import Maco
    from ensemble.image.parameterization import ImageParameterization, Parameterization
    from ensemble.image.pixels import Pixels
    from ensemble.image.start import FromFolder, FromImage, Noise, Start
    from ensemble.image.warm import Warm
    from ensemble.machine.errors import MachineFailure
    from ensemble.objectives.activation import Activation
    from ensemble.objectives.bn_matching import BNMatching
    from ensemble.objectives.classification import ClassScore, CrossEntropy, Saturating, SoftTargets
    from ensemble.objectives.diversity import Diversity
    from ensemble.objectives.image_priors import L2Prior, TotalVariation
    from ensemble.objectives.repulsion import Repulsion
    from ensemble.objectives.terms import ImageTerm, Slice, TeacherTerm, Totals
    from ensemble.plugins import load_plugin
    from ensemble.recipe import Recipe, Stage, TeacherEntry
    from ensemble.runs.recipes import load_recipe
    from ensemble.runs.results import Results
    from ensemble.teachers.taps import Tap
    from ensemble.teachers.teacher import Observation, Profile
    from ensemble.units.prefer import prefer
    from ensemble.units.preferred import Preferred
    from models import ModelCard, create_model, list_models, register_model

_HOME = {
    "ensemble.api": ("invert",),
    "ensemble.units.prefer": ("prefer",),
    "ensemble.units.preferred": ("Preferred",),
    "ensemble.runs.recipes": ("load_recipe",),
    "ensemble.runs.results": ("Results",),
    "ensemble.data.generated": ("GeneratedImages",),
    "ensemble.recipe": ("Recipe", "Stage", "TeacherEntry"),
    "ensemble.machine.errors": ("MachineFailure",),
    "ensemble.engine.guard": ("NotFiniteError",),
    "ensemble.plugins": ("load_plugin",),
    "models": ("ModelCard", "create_model", "list_models", "register_model"),
    "ensemble.objectives.terms": ("TeacherTerm", "ImageTerm", "Slice", "Totals"),
    "ensemble.objectives.classification": ("CrossEntropy", "Saturating", "SoftTargets", "ClassScore"),
    "ensemble.objectives.bn_matching": ("BNMatching",),
    "ensemble.objectives.activation": ("Activation",),
    "ensemble.objectives.diversity": ("Diversity",),
    "ensemble.teachers.taps": ("Tap",),
    "ensemble.objectives.image_priors": ("TotalVariation", "L2Prior"),
    "ensemble.objectives.repulsion": ("Repulsion",),
    "ensemble.teachers.teacher": ("Observation", "Profile"),
    "ensemble.image.parameterization": ("Parameterization", "ImageParameterization"),
    "ensemble.image.fourier": ("Fourier",),
    "ensemble.image.generator": ("Generator",),
    "ensemble.image.fixed_generator": ("FixedGenerator", "CodeSpace"),
    "ensemble.image.maco": ("Maco",),
    "ensemble.image.pixels": ("Pixels",),
    "ensemble.image.start": ("Start", "Noise", "FromImage", "FromFolder"),
    "ensemble.image.warm": ("Warm",),
    "ensemble.image.dead_leaves": ("DeadLeaves",),
    "ensemble.engine.optimizers": ("Optimizer", "Adam"),
}
"""Module -> what it gives to the public face."""

__all__ = [
    "Activation",
    "Adam",
    "BNMatching",
    "ClassScore",
    "CodeSpace",
    "CrossEntropy",
    "DeadLeaves",
    "Diversity",
    "FixedGenerator",
    "Fourier",
    "FromFolder",
    "FromImage",
    "GeneratedImages",
    "Generator",
    "ImageParameterization",
    "ImageTerm",
    "L2Prior",
    "MachineFailure",
    "Maco",
    "ModelCard",
    "Noise",
    "NotFiniteError",
    "Observation",
    "Optimizer",
    "Parameterization",
    "Pixels",
    "Preferred",
    "Profile",
    "Recipe",
    "Repulsion",
    "Results",
    "Saturating",
    "Slice",
    "SoftTargets",
    "Stage",
    "Start",
    "Tap",
    "TeacherEntry",
    "TeacherTerm",
    "TotalVariation",
    "Totals",
    "Warm",
    "create_model",
    "invert",
    "list_models",
    "load_plugin",
    "load_recipe",
    "prefer",
    "register_model",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            _check_models()
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'ensemble' has no attribute {name!r}")


def _check_models() -> None:
    """ImportError where another module called `models` hides ours: a models.py beside a user's script does."""
    models = import_module("models")
    if not hasattr(models, "ModelCard"):
        raise ImportError(f"{models.__file__} hides this project's package `models`; give your file another name")


def __dir__() -> list[str]:
    return __all__
