"""Newborns whose incoming weights are zero, so that nothing reaches the consumers."""

from __future__ import annotations

from typing import Literal

from graphnet.edit.initialisers.base import initialiser
from graphnet.edit.initialisers.draws import Draw, draw, refuse_tied
from graphnet.edit.initialisers.gradmax import first_gradient_note
from graphnet.edit.newborns import Claim, Newborns, visible
from graphnet.edit.paths import contracted_by_attention, silence
from graphnet.errors import EditError
from graphnet.ir.ops.norm import BatchNorm, GroupNorm

__all__ = ["zero_incoming"]


@initialiser("zero-incoming")
def zero_incoming(
    newborns: Newborns, *, outgoing: Draw = "copy-std", batch_norm: Literal["refuse", "allow"] = "refuse"
) -> Claim:
    """Zero incoming weights and biases, random outgoing ones; the newborns' first gradient is all incoming.

    Exact where every op between the weights that write the group and those that read it maps zero to zero, and no
    statistic, model output or unweighted sum reads the group. Where newborn slices meet in a product (a gated layer,
    values under attention, keys under queries, the kernels of a depthwise convolution) one factor is zero and the
    others are drawn: with all of them at zero the newborns would never train. Newborn key features are exact for the
    same reason, although attention sums over them.

    Parameters
    ----------
    outgoing : {"copy-std", "kaiming"}
        How outgoing weights are drawn, and incoming ones that need not be zero.
    batch_norm : {"refuse", "allow"}
        In training mode a batch norm sees no variance in the newborns (and a group norm over a group of newborns in
        any mode) and multiplies their first incoming gradient by ``1/sqrt(eps)``, 316 at 1e-5. ``allow`` takes that
        and says so in the record.

    Raises
    ------
    EditError
        An activation on every way to the readers has derivative zero at zero (torch's ``relu``), so that newborns
        would never train; a batch norm stands on the way; one tensor writes both factors of a product; weights are
        tied; or no weight writes the group.
    """
    refuse_tied(newborns, "zero-incoming", ": with both at zero the newborns would never train")
    plan, group = newborns.plan, newborns.group
    found = silence(plan.graph, group.name)
    if found.dead is not None:
        op = plan.graph.nodes[found.dead].op
        raise EditError(
            f"zero-incoming: the derivative of {found.dead!r} ({op.op}) at 0 is 0 in torch, so that newborns of "
            f"{group.name!r} would never train: use an activation with a slope at 0 (gelu, silu, tanh, leaky_relu "
            "...), or an initialiser that does not start there (zero-outgoing, pair-cancel, gradmax)"
        )
    if found.both is not None:
        tensor, product = found.both
        raise EditError(
            f"zero-incoming: {tensor!r} writes both factors of {product!r} for {group.name!r}, and with both at zero "
            "the newborns would never train: use zero-outgoing or pair-cancel"
        )
    norms = [op for name in found.norms if isinstance(op := plan.graph.nodes[name].op, BatchNorm | GroupNorm)]
    if norms and batch_norm == "refuse":
        raise EditError(
            f"zero-incoming: {first_gradient_note(norms[0])}: use zero-outgoing or pair-cancel, or allow it with "
            "batch_norm='allow'"
        )
    if not found.zeroed and found.broken is None:
        raise EditError(f"zero-incoming: no weight writes {group.name!r} that anything reads: use another initialiser")
    for block in newborns.outgoing():
        draw(block, newborns, outgoing)
    for block in newborns.incoming():
        if block.holder.tensor in found.zeroed or block.holder.kind == "bias":
            block.zero()
        else:
            draw(block, newborns, outgoing)
    reason = visible(group)
    if reason is not None and not contracted_by_attention(plan.graph, group):
        return Claim("none", reason)
    if found.broken is not None:
        return Claim("none", f"{found.broken!r} does not map zero to zero")
    return Claim("function", first_gradient_note(norms[0]) if norms else "")
