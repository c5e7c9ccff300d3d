"""Print the JSON schema of recipes, by which editors complete and check them.

examples:
  python invert.py schema > recipe.schema.json
  python invert.py schema --training > training.schema.json
  python invert.py schema --distillation > distillation.schema.json
  python invert.py schema --leakage > leakage.schema.json
  python invert.py schema --plugin my_objective.py > recipe.schema.json

A recipe whose first line is `# yaml-language-server: $schema=recipe.schema.json`, a path relative to the recipe, is
checked by it while it is written. The shipped recipes begin so.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from ensemble.applications._options import Parser


def arguments(p: Parser) -> None:
    """The options."""
    which = p.add_mutually_exclusive_group()
    which.add_argument("--training", action="store_true", help="of training recipes (invert.py train)")
    which.add_argument("--distillation", action="store_true", help="of distillation recipes (invert.py distill)")
    which.add_argument("--leakage", action="store_true", help="of leakage studies (invert.py leakage)")


def run(options: argparse.Namespace) -> int:
    """The schema, on stdout."""
    print(schema_text(training=options.training, distillation=options.distillation, leakage=options.leakage))
    return 0


def schema_text(*, training: bool = False, distillation: bool = False, leakage: bool = False) -> str:
    """The schema as JSON, with the kinds that plugins have added."""
    from ensemble.config.schema import json_schema
    from ensemble.plugins import load_entry_points

    load_entry_points()
    if training:
        from ensemble.training.recipe import TrainingRecipe

        schema = json_schema(TrainingRecipe)
    elif distillation:
        from ensemble.training.distillation import DistillationRecipe

        schema = json_schema(DistillationRecipe)
    elif leakage:
        from ensemble.privacy.study.recipe import LeakageRecipe

        schema = json_schema(LeakageRecipe)
    else:
        from ensemble.recipe import Recipe

        schema = json_schema(Recipe)
    return json.dumps(_extensible(schema), indent=2, ensure_ascii=False)


def _extensible(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a file, which may leave out what the file has that it `extends`.

    An inner mapping of such a file is held to be whole, though it is merged key by key with the other file's.
    """
    extends = {
        "type": "string",
        "description": "A file, relative to this one, whose values hold where this file names none.",
    }
    required = schema.pop("required", [])
    schema["properties"] = {"extends": extends, **schema["properties"]}
    return schema | {"anyOf": [{"required": required}, {"required": ["extends"]}]}
