"""Sets of images that are to be apart: what is in two of them, or twice in one, would answer for the network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from ensemble.data.labelled import LabelledImages
from ensemble.machine.words import plural

_MOST = 0.1
"""Of the smaller set: members and non-members that share more are not what they are called."""


Images = LabelledImages | None


def apart(reference: Images, members: Images, others: Images) -> tuple[Images, Images, Images, list[str]]:
    """The sets without the images that are in two of them, bit by bit, and what was left out, in words.

    Each image counts once. Members and non-members lose what they share; the reference loses what is in either:
    non-members that are near the reference by being in it would make members seem far. ValueError where members and
    non-members share a tenth.
    """
    said = []
    given = (("members", members), ("non-members", others), ("reference images", reference))
    found = {name: data for name, data in given if data is not None}
    keys = {}
    for name, data in found.items():
        first = _first(data)
        found[name], keys[name] = _only(data, first), [*first]
        if repeated := len(data) - len(first):
            which = plural(repeated, name.removesuffix("s"))
            said.append(f"{which} that {'repeats' if repeated == 1 else 'repeat'} another")
    reference, own = found.pop("reference images", None), keys.pop("reference images", [])
    if len(found) == 2:
        both = set(keys["members"]) & set(keys["non-members"])
        twice = f"{plural(len(both), 'member')} and {plural(len(both), 'non-member')}"
        if len(both) > _MOST * min(map(len, keys.values())):
            raise ValueError(f"--members, --non-members: {twice} are in both; give sets that are apart")
        if both:
            said.append(f"{twice} that are in both")
            found = {name: _without(data, keys[name], both) for name, data in found.items()}
    if reference is not None and found:
        known = set().union(*keys.values())
        if shared := sum(key in known for key in own):
            said.append(f"{plural(shared, 'reference image')} that {'is' if shared == 1 else 'are'} in either")
            reference = _without(reference, own, known)
    return reference, found.get("members"), found.get("non-members"), said


def once(data: LabelledImages) -> LabelledImages:
    """The first of each image: of one that is there twice a network may learn the one and not the other."""
    return _only(data, _first(data))


def _first(data: LabelledImages) -> dict[bytes, int]:
    """Where each image stands first, by its digest, in their order."""
    first: dict[bytes, int] = {}
    for i, image in enumerate(data.images):
        first.setdefault(hashlib.sha256(image.contiguous().numpy()).digest(), i)
    return first


def _only(data: LabelledImages, first: Mapping[bytes, int]) -> LabelledImages:
    return data if len(first) == len(data) else data.subset(torch.tensor([*first.values()]))


def _without(data: LabelledImages, keys: list[bytes], left_out: set[bytes]) -> LabelledImages:
    return data.subset(torch.tensor([i for i, key in enumerate(keys) if key not in left_out], dtype=torch.long))
