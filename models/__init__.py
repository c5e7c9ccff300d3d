"""Networks by name: our own table, torchvision's and timm's, with what is known of their weights."""

from models import cifar_models  # noqa: F401  (registers the CIFAR networks)
from models._card import Assumed, ModelCard, Weights
from models._classes import class_indices, in_order
from models._convention import network_input, network_logits
from models._loading import WeightsFile, fit, sha256
from models._plugins import add_plugin_table, load_entry_points, load_plugin
from models._registry import create_model, list_models, model_card, untrained_model
from models._spec import ModelSpec, parse_spec
from models._table import register_model
from models._trial import check_reads, why
from models._wordnet import wordnet_numbers

__all__ = [
    "Assumed",
    "ModelCard",
    "ModelSpec",
    "Weights",
    "WeightsFile",
    "add_plugin_table",
    "check_reads",
    "class_indices",
    "create_model",
    "fit",
    "in_order",
    "list_models",
    "load_entry_points",
    "load_plugin",
    "model_card",
    "network_input",
    "network_logits",
    "parse_spec",
    "register_model",
    "sha256",
    "untrained_model",
    "why",
    "wordnet_numbers",
]
