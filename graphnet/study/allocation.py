"""From compactness to whole units: how many each layer ends with, and how it gets there.

Compactness is a share of the *weights* in the editable layers. It is split over the layers by weight mass
times a bias, turned into unit counts without passing the budget, and reached by growing from a seed or
pruning from full. All arithmetic is exact (rational), so a target never depends on floating-point rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Final

from graphnet.errors import SchemaError

__all__ = ["BIASES", "bias_weights", "interpolate", "prune_schedule", "seed_widths", "targets"]

BIASES: Final[dict[str, Callable[[int], tuple[float, ...]]]] = {
    "neutral": lambda layers: (1.0,) * layers,
    "fc1-protect": lambda layers: (1.5,) * (layers - 1) + (0.6 if layers > 1 else 1.5,),
    "fc3-protect": lambda layers: (0.6,) * (layers - 1) + (1.5,),
    "ends-skewed": lambda layers: tuple(1.2 if i in (0, layers - 1) else 0.6 for i in range(layers)),
}
"""The named biases, each a function of the number of layers.

For three layers they are the published ones: (1, 1, 1), (1.5, 1.5, 0.6), (0.6, 0.6, 1.5), (1.2, 0.6, 1.2).
For other counts the last layer, or the first and the last, keep their part and every other layer has the part
of the middle one.
"""


def bias_weights(bias: str | Sequence[float], layers: int) -> tuple[float, ...]:
    """The bias of each layer, from a name or from one number per layer.

    Raises
    ------
    SchemaError
        If the name is unknown, the count does not match, or a number is not positive and finite.

    Examples
    --------
    >>> bias_weights("ends-skewed", 4)
    (1.2, 0.6, 0.6, 1.2)
    """
    if isinstance(bias, str):
        if bias not in BIASES:
            raise SchemaError(f"no allocation bias is named {bias!r}; there are: {', '.join(BIASES)}")
        return BIASES[bias](layers)
    if len(bias) != layers:
        raise SchemaError(f"the allocation bias has {len(bias)} numbers for {layers} layers; give one for each")
    if not all(math.isfinite(b) and b > 0 for b in bias):
        raise SchemaError(f"an allocation bias must be positive and finite in every layer, got {list(bias)}")
    return tuple(float(b) for b in bias)


def targets(
    widths: Sequence[int], masses: Sequence[int], compactness: float, bias: str | Sequence[float] = "neutral"
) -> list[int]:
    r"""Unit count of each layer at a global compactness.

    With :math:`K = c \sum w_\ell` and :math:`\mu_\ell = w_\ell / d_\ell`: water-fill
    :math:`k_\ell = K b_\ell w_\ell / \sum b w` with a cap at :math:`w_\ell`, take
    :math:`\lfloor k_\ell / \mu_\ell \rfloor` clamped to `[1, d]`, and spend what is left of `K` by descending
    nonzero fraction, at most one unit each, passing over a layer whose unit costs more than is left. A layer
    that the clamp raised to 1 already has more than its share and gets no further unit.

    Parameters
    ----------
    widths
        Units :math:`d_\ell` of each editable layer when full.
    masses
        Weights :math:`w_\ell` of each layer when full (elements of its weight tensor, dense fan-in, no
        biases).
    compactness
        Share :math:`c` of the weights, in (0, 1].
    bias
        A name in `BIASES`, or one positive number for each layer.

    Returns
    -------
    list of int
        Between 1 and `widths[i]` in each layer. Their mass is at most `K`, unless a layer was raised to 1.

    Raises
    ------
    SchemaError
        If an argument is out of range or the lengths differ.

    Notes
    -----
    The compactness and the biases are those of Lillo & Cheney (2026, arXiv 2605.15435), which leaves the
    rounding open. Executed weights shrink faster than `c`, since a layer's fan-in shrinks too. Targets are
    not monotone in `c` unit for unit: fix the final target once, and use :func:`interpolate` on the way.

    Examples
    --------
    >>> widths, masses = [512, 512, 256], [4096 * 512, 512 * 512, 512 * 256]
    >>> targets(widths, masses, 0.5)
    [256, 256, 128]
    >>> targets(widths, masses, 0.5, "fc3-protect")
    [241, 242, 256]
    """
    _check_layers(widths, masses)
    if not 0 < compactness <= 1:
        raise SchemaError(f"compactness is a share of the weights in (0, 1], got {compactness!r}")
    pulls = [_exact(b) * w for b, w in zip(bias_weights(bias, len(widths)), masses, strict=True)]
    budget = _exact(compactness) * sum(masses)
    kept = _water_fill(budget, pulls, masses)
    unit_mass = [Fraction(w, d) for w, d in zip(masses, widths, strict=True)]
    ideal = [k / mu for k, mu in zip(kept, unit_mass, strict=True)]
    units = [min(d, max(1, math.floor(u))) for u, d in zip(ideal, widths, strict=True)]
    left = budget - sum(u * mu for u, mu in zip(units, unit_mass, strict=True))
    fractions = [u - n for u, n in zip(ideal, units, strict=True)]  # at most 0 where the clamp raised the layer
    for layer in sorted(range(len(units)), key=lambda i: (-fractions[i], i)):
        if fractions[layer] > 0 and unit_mass[layer] <= left:
            units[layer] += 1
            left -= unit_mass[layer]
    return units


def seed_widths(widths: Sequence[int], targets: Sequence[int], share: float = 0.1) -> list[int]:
    """Units with which growth starts: a share of the full width, at least 1, at most the target.

    The cap matters: 10% of 256 units is 25, while FC1-Protect at compactness 0.2 ends that layer at 22.

    Parameters
    ----------
    widths, targets
        Full and final units of each layer.
    share
        Share of the full width, in (0, 1]; rounded down.

    Raises
    ------
    SchemaError
        If the lengths differ, a target is not in `1 .. width`, or `share` is out of range.

    Examples
    --------
    >>> seed_widths([512, 512, 256], [105, 106, 22])
    [51, 51, 22]
    """
    _check_same_length("widths", widths, "targets", targets)
    if not 0 < share <= 1:
        raise SchemaError(f"the seed is a share of the width in (0, 1], got {share!r}")
    for layer, (full, final) in enumerate(zip(widths, targets, strict=True)):
        if not 1 <= final <= full:
            raise SchemaError(f"layer {layer}: the target must be in 1..{full}, the full width, got {final}")
    return [min(final, max(1, math.floor(_exact(share) * full))) for full, final in zip(widths, targets, strict=True)]


def interpolate(seed_widths: Sequence[int], targets: Sequence[int], cycles: int) -> list[list[int]]:
    """Units of each layer after each growth event, on a straight line from the seed to the target.

    Parameters
    ----------
    seed_widths
        Units of each layer before the first event.
    targets
        Units after the last event.
    cycles
        Number of growth events.

    Returns
    -------
    list of list of int
        `cycles` rows, one unit count for each layer; never decreasing, and the last row is `targets`. The
        seed itself is not a row.

    Raises
    ------
    SchemaError
        If the lengths differ, `cycles` is below 1, a seed is below 1 or above its target.

    Examples
    --------
    >>> interpolate([10, 3], [50, 4], cycles=4)
    [[20, 3], [30, 4], [40, 4], [50, 4]]
    """
    _check_same_length("seed widths", seed_widths, "targets", targets)
    if cycles < 1:
        raise SchemaError(f"growth needs at least 1 cycle, got {cycles}")
    for layer, (seed, final) in enumerate(zip(seed_widths, targets, strict=True)):
        if not 1 <= seed <= final:
            raise SchemaError(
                f"layer {layer}: growth cannot start from {seed} units and end at {final}; the seed must be "
                f"in 1..{final} (seed_widths() caps it)"
            )
    return [
        # rounded half up in integers
        [s + (2 * (f - s) * t + cycles) // (2 * cycles) for s, f in zip(seed_widths, targets, strict=True)]
        for t in range(1, cycles + 1)
    ]


def prune_schedule(active: int, target: int, cycle: int, cycles: int) -> int:
    """Units to remove from a layer at one cycle of iterative pruning.

    ``min(q, ceil(q / max(1, T - t)), a)`` with ``q = a - target``: an even share of what is still too many,
    and all of it at the last cycle.

    Parameters
    ----------
    active
        Units `a` now.
    target
        Units at the end.
    cycle
        This cycle `t`, counted from 0.
    cycles
        Number of cycles `T`.

    Returns
    -------
    int
        How many to remove; 0 where the layer is at its target or below.

    Raises
    ------
    SchemaError
        If a number is negative, or `cycles` is below 1.

    Examples
    --------
    >>> active, path = 256, []
    >>> for t in range(5):
    ...     active -= prune_schedule(active, 51, t, 5)
    ...     path.append(active)
    >>> path
    [215, 174, 133, 92, 51]
    """
    if min(active, target, cycle) < 0 or cycles < 1:
        raise SchemaError(
            "pruning needs active, target, cycle >= 0 and cycles >= 1, "
            f"got active={active}, target={target}, cycle={cycle}, cycles={cycles}"
        )
    excess = max(0, active - target)
    return min(excess, -(-excess // max(1, cycles - cycle)), active)


def _water_fill(budget: Fraction, pulls: Sequence[Fraction], caps: Sequence[int]) -> list[Fraction]:
    """Split `budget` in proportion to `pulls`; what a cap turns away goes to the other layers."""
    kept = [Fraction(0)] * len(pulls)
    open_layers = set(range(len(pulls)))
    while open_layers:
        pull = sum(pulls[i] for i in open_layers)
        share = {i: budget * pulls[i] / pull for i in open_layers}
        full = {i for i in open_layers if share[i] >= caps[i]}
        for i in full or open_layers:
            kept[i] = Fraction(caps[i]) if i in full else share[i]
        budget -= sum(caps[i] for i in full)
        open_layers = open_layers - full if full else set()
    return kept


def _exact(value: float) -> Fraction:
    """The decimal a person wrote: 0.2 is one fifth, not its nearest binary fraction."""
    return Fraction(str(value))


def _check_layers(widths: Sequence[int], masses: Sequence[int]) -> None:
    _check_same_length("widths", widths, "masses", masses)
    for layer, (width, mass) in enumerate(zip(widths, masses, strict=True)):
        if width < 1 or mass < 1:
            raise SchemaError(f"layer {layer}: width and mass must be at least 1, got width {width} and mass {mass}")


def _check_same_length(name: str, first: Sequence[int], other: str, second: Sequence[int]) -> None:
    if len(first) != len(second) or not first:
        raise SchemaError(f"give one number for each layer: {len(first)} {name} and {len(second)} {other}")
