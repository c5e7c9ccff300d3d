"""Networks by name: our own table, torchvision's and timm's, with what is known of their weights."""

from models import cifar_models  # noqa: F401  (registers the CIFAR networks)
from models._card import ModelCard, Weights
from models._plugins import load_plugin
from models._registry import create_model, list_models, model_card, register_model
from models._spec import ModelSpec, parse_spec

__all__ = [
    "ModelCard",
    "ModelSpec",
    "Weights",
    "create_model",
    "list_models",
    "load_plugin",
    "model_card",
    "parse_spec",
    "register_model",
]
