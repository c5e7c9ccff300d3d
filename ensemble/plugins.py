"""Plugins: files and installed packages that add models, objectives, parameterizations, optimisers and starts."""

from __future__ import annotations

import ensemble.recipe  # noqa: F401  (all kinds of ours are known before a plugin adds its own)
import models
from ensemble.config.kinds import undone_on_error

models.add_plugin_table(undone_on_error)
load_plugin = models.load_plugin
load_entry_points = models.load_entry_points
