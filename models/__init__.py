"""Networks by name: our own table, torchvision's and timm's, with what is known of their weights."""

from models import cifar_models  # noqa: F401  (registers the CIFAR networks)
from models._card import Assumed, ModelCard, Weights
from models._classes import as_many_in_order, class_indices
from models._convention import (
    are_probabilities,
    card_logits,
    first_tensor,
    log_of,
    network_input,
    network_logits,
)
from models._loading import NETWORK, WeightsFile, fit, sha256
from models._plugins import add_plugin_table, load_entry_points, load_plugin
from models._registry import create_model, files_of, list_models, model_card, untrained_model
from models._spec import ModelSpec, parse_spec
from models._table import register_model
from models._trial import cautions, check_reads, evaluating, has_lazy_layers, reason_of, retold, usable
from models._wordnet import wordnet_numbers

__all__ = [
    "NETWORK",
    "Assumed",
    "ModelCard",
    "ModelSpec",
    "Weights",
    "WeightsFile",
    "add_plugin_table",
    "are_probabilities",
    "as_many_in_order",
    "card_logits",
    "cautions",
    "check_reads",
    "class_indices",
    "create_model",
    "evaluating",
    "files_of",
    "first_tensor",
    "fit",
    "has_lazy_layers",
    "list_models",
    "load_entry_points",
    "load_plugin",
    "log_of",
    "model_card",
    "network_input",
    "network_logits",
    "parse_spec",
    "reason_of",
    "register_model",
    "retold",
    "sha256",
    "untrained_model",
    "usable",
    "wordnet_numbers",
]
