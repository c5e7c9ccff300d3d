"""Search over the fields of a recipe: a space of values, metrics of a point, a study shared by workers, its results."""

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "none", "hyperband")
