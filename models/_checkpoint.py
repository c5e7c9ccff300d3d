"""Which tensors of a checkpoint are a network's: wrappers, prefixes, averages, masks and what lies beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from models._card import ModelCard

Tensors = dict[str, torch.Tensor]

COUNTER = "num_batches_tracked"
"""BatchNorm's: of no use in eval mode, and absent from old files."""
_COUNTERS = (COUNTER, "total_ops", "total_params", "n_averaged")
"""Last parts of keys that are no weights: BatchNorm's, a profiler's (thop), an average's (torch.optim.swa_utils)."""
_GENERIC = {
    "module",
    "_orig_mod",
    "model",
    "net",
    "network",
    "state_dict",
    "model_state_dict",
    "model_state",
    "weights",
}
"""Parts of a prefix that only wrap the network."""
_INNER = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_AVERAGED = re.compile(r"(^|_)(ema|swa|avg|averaged?|shadow)(_|\d*$)")
_DEEPEST = 8


def tensors_of(content: Any) -> Tensors:
    """All tensors below dictionaries with text keys, by their dotted address, such as `state_dict.module.fc.bias`.

    Counters are left out; weights that were pruned by a mask (`weight_orig`, `weight_mask`) are their product.
    """
    found: Tensors = {}
    _gather(content, "", found, 0)
    return _masked({key: value for key, value in found.items() if key.rpartition(".")[2] not in _COUNTERS})


def _gather(content: Any, address: str, found: Tensors, depth: int) -> None:
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, torch.Tensor):
            found[address + key] = value
        else:
            _gather(value, f"{address}{key}.", found, depth + 1)


def _masked(tensors: Tensors) -> Tensors:
    """`tensors` with K_orig x K_mask as K (torch.nn.utils.prune)."""
    made = dict(tensors)
    for key, value in tensors.items():
        name = key.removesuffix("_orig")
        mask = tensors.get(name + "_mask")
        if name != key and name not in tensors and mask is not None and mask.shape == value.shape:
            del made[key], made[name + "_mask"]
            made[name] = value * mask.to(value.dtype)
    return made


def below(tensors: Tensors, prefix: str) -> Tensors:
    """Those whose keys begin with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def prefixes(tensors: Iterable[str]) -> Counter[str]:
    """How many keys begin with each dotted prefix ("", "module.", "module.model.", ..), shortest first."""
    counts: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        counts.update("".join(f"{part}." for part in parts[:i]) for i in range(len(parts)))
    return Counter({prefix: counts[prefix] for prefix in sorted(counts, key=lambda p: (p.count("."), p))})


def choose(
    tensors: Tensors,
    wanted: Mapping[str, tuple[int, ...]],
    adapt: Callable[[Tensors], Tensors],
    card: ModelCard,
    where: str,
    part: str | None,
) -> tuple[Tensors, str | None]:
    """(The tensors, adapted, below the prefix where all keys of `wanted` are, and what to say of the choice).

    `wanted` holds shapes by the network's keys. Of several such sets `part` names one; without it, averaged weights
    go before raw ones, then those below nothing but wrappers (`module.`, `model.`, ..). Where no set is complete, the
    one that has most of the keys is given.
    Raises ValueError where `part` names none of them, or several sets differ and nothing tells which is meant.
    """
    complete = _complete(tensors, wanted, adapt)
    if not complete:  # wrappers inside, as in features.module.0.weight
        complete = _complete(unwrapped := _without_wrappers(tensors), wanted, adapt)
        tensors = unwrapped if complete else tensors
    complete = _of_these_shapes(complete, wanted) or complete
    if not complete:
        sets = {p: adapt(below(tensors, p)) for p in prefixes(tensors)}
        best = max(sets, key=lambda p: (len(wanted.keys() & sets[p].keys()), _wrappings(p), -len(sets[p])))
        return sets[best], None
    chosen, said = _one_of(complete, wanted, card, where, part)
    others = [p for p in complete if p != chosen and p.startswith(chosen)]
    given = complete[chosen]
    if others:  # other sets that lie below the chosen one are none of its keys
        inner = tuple(p.removeprefix(chosen) for p in others)
        given = {key: value for key, value in given.items() if not key.startswith(inner)}
    return given, said


def _complete(
    tensors: Tensors, wanted: Mapping[str, tuple[int, ...]], adapt: Callable[[Tensors], Tensors]
) -> dict[str, Tensors]:
    """The adapted tensors below each prefix where all keys of `wanted` are."""
    counts = prefixes(tensors)
    sets = {p: adapt(below(tensors, p)) for p, count in counts.items() if count >= len(wanted)}
    return {p: given for p, given in sets.items() if wanted.keys() <= given.keys()}


def _without_wrappers(tensors: Tensors) -> Tensors:
    """`tensors` without the parts of keys that DataParallel, torch.compile and FSDP add; as given where keys clash."""
    made = {".".join(part for part in key.split(".") if part not in _INNER): value for key, value in tensors.items()}
    return made if len(made) == len(tensors) else tensors


def _of_these_shapes(sets: Mapping[str, Tensors], wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Tensors]:
    return {p: given for p, given in sets.items() if all(tuple(given[k].shape) == s for k, s in wanted.items())}


def _wrappings(prefix: str) -> int:
    """How many parts of `prefix` only wrap, or -1 where another part is among them."""
    parts = prefix.split(".")[:-1]
    return len(parts) if all(part in _GENERIC for part in parts) else -1


def _averaged(prefix: str) -> bool:
    return any(_AVERAGED.search(part) for part in prefix.lower().split("."))


def _one_of(
    complete: Mapping[str, Tensors], wanted: Iterable[str], card: ModelCard, where: str, part: str | None
) -> tuple[str, str | None]:
    if part is not None:
        return _named(list(complete), part, card, where), None
    distinct: list[str] = []
    for prefix in sorted(complete, key=lambda p: (_wrappings(p) < 0, p.count("."), p)):
        if not any(_same(complete[prefix], complete[other], wanted) for other in distinct):
            distinct.append(prefix)
    if len(distinct) == 1:
        return distinct[0], None
    averaged = [p for p in distinct if _averaged(p)]
    plain = [p for p in distinct if _wrappings(p) >= 0]
    names = {p: p.rstrip(".") or "the top" for p in distinct}
    if len(averaged) == 1:
        others = ", ".join(names[p] for p in distinct if p != averaged[0])
        return averaged[0], (
            f"{where} holds raw and averaged weights; the averaged ones are taken ({names[averaged[0]]});"
            f" {card.name}@FILE#model takes the raw ones ({others})"
        )
    if len(plain) == 1 and not averaged:
        others = ", ".join(names[p] for p in distinct if p != plain[0])
        return plain[0], f"{where} holds several sets of weights; taken is {names[plain[0]]}, left out {others}"
    raise ValueError(
        f"{where} holds several sets of weights for {card.name}: {', '.join(names.values())};"
        f" choose one, as {card.name}@FILE#{next(p.rstrip('.') for p in distinct if p)}"
    )


def _named(complete: list[str], part: str, card: ModelCard, where: str) -> str:
    """The prefix that `part` names: its address, names in it, `ema` (averaged), `model` or `raw` (not averaged)."""
    raw = [p for p in complete if not _averaged(p)]
    rules = [
        [p for p in complete if p.rstrip(".") == part],
        [p for p in (raw if part in ("model", "raw") else complete) if f".{part}." in f".{p}"],
        [p for p in complete if _averaged(p)] if part == "ema" else raw if part in ("model", "raw") else [],
    ]
    for found in rules:
        if found:
            return min(found, key=lambda p: (_wrappings(p) < 0, p.count(".")))
    known = ", ".join(p.rstrip(".") or "(without a name)" for p in complete)
    raise ValueError(f"{where} holds no weights {part!r} for {card.name}; it holds: {known}")


def _same(one: Tensors, other: Tensors, wanted: Iterable[str]) -> bool:
    return all(one[key] is other[key] or torch.equal(one[key], other[key]) for key in wanted)


# --- normalisers ----------------------------------------------------------------------------------------------

_MEAN, _STD = re.compile(r"(new|norm)?_?(mean|mu)"), re.compile(r"(new|norm)?_?(std|sigma)")


def without_normalizers(
    tensors: Tensors, wanted: Iterable[str]
) -> tuple[Tensors, tuple[tuple[float, ...], tuple[float, ...]] | None]:
    """`tensors` without layers that hold but a mean and a std of 1 or 3 channels, and the first such pair.

    Layers whose keys the network has itself (`wanted`) stay.
    """
    layers: dict[str, list[str]] = {}
    for key in tensors:
        layers.setdefault(key.rpartition(".")[0], []).append(key)
    kept, first = dict(tensors), None
    ends = tuple(wanted)
    for keys in layers.values():
        mean = [k for k in keys if _MEAN.fullmatch(k.rpartition(".")[2])]
        std = [k for k in keys if _STD.fullmatch(k.rpartition(".")[2])]
        if len(keys) != 2 or len(mean) != 1 or len(std) != 1:
            continue
        pair = [tensors[mean[0]], tensors[std[0]]]
        if any(t.numel() not in (1, 3) for t in pair) or any(
            k == end or k.endswith("." + end) for k in keys for end in ends
        ):
            continue
        first = first or (_numbers(pair[0]), _numbers(pair[1]))
        for key in keys:
            del kept[key]
    return kept, first


def _numbers(tensor: torch.Tensor) -> tuple[float, ...]:
    values = [float(f"{v:.6g}") for v in tensor.flatten().tolist()]
    return tuple(values * 3 if len(values) == 1 else values)


def check_values(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Raises ValueError that names the first key whose tensor is not plain, or holds NaN or infinite values in fp32."""
    variances = [value for key, value in tensors.items() if key.endswith("running_var") and _unusual(value) is None]
    if variances and not any(bool(value.any()) for value in variances):
        raise ValueError(f"{source}: every running_var is 0, as of a network that saw nothing; take another checkpoint")
    for key, value in tensors.items():
        if (kind := _unusual(value)) is not None:
            raise ValueError(f"{source}: {key} is {kind}; save the network in fp32, as dense tensors")
        if (held := unfit_values(key, value)) is not None:
            raise ValueError(
                f"{source}: {key} holds {held}; no image can be made with such a network; take another checkpoint"
            )


def unfit_values(key: str, value: torch.Tensor) -> str | None:
    """What no network can work with among a plain tensor's values in fp32: NaN, infinite ones, variances below 0."""
    if not value.is_floating_point() or _unusual(value) is not None:
        return None
    if not (finite := value.float().isfinite()).all():
        bad = value.float()[~finite]
        kind = "NaN" if bool(bad.isnan().all()) else "infinite" if bool(bad.isinf().all()) else "NaN and infinite"
        return f"{kind} values ({bad.numel()} of {value.numel()})"
    below = int((value.float() < 0).sum()) if key.endswith("running_var") else 0
    return f"variances below 0 ({below} of {value.numel()})" if below else None


def _unusual(value: torch.Tensor) -> str | None:
    if value.is_meta:
        return "a meta tensor, without values"
    if value.is_quantized:
        return "a quantised tensor"
    if value.layout != torch.strided or value.is_nested:
        return "not a dense tensor"
    return "complex" if value.is_complex() else None
