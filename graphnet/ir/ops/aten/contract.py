"""Products summed over shared dimensions: linear maps, matrix products, einsum, attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import ClassVar, Literal, TypeAlias

from graphnet.ir.layout import Layout, atom, times
from graphnet.ir.ops.arithmetic import agree
from graphnet.ir.ops.aten.call import Call
from graphnet.ir.ops.base import Context, Dims, Role, Shape, register

__all__ = ["Attend", "Contract"]

_LETTERS = "abcdefghijklmnopqrstuvwxyz"

Terms: TypeAlias = tuple[tuple[int, str], ...]
"""Each multiplied operand with the letters of its dimensions; one operand may stand twice (``x @ x``)."""


@register
class Contract(Call):
    """A sum of products over shared dimensions: ``linear``, ``matmul``, ``addmm``, ``einsum`` and their like."""

    op: Literal["contract"] = "contract"
    targets: ClassVar[tuple[str, ...]] = (
        "linear", "matmul", "mm", "bmm", "mv", "dot", "vdot", "inner", "outer", "ger", "addmm", "addmv", "baddbmm",
        "einsum", "bilinear",
    )  # fmt: skip
    unit_kind: ClassVar[str] = "neurons"

    def terms(self, ranks: Sequence[int]) -> tuple[Terms, str, int | None]:
        """Letters of each multiplied operand, letters of the output, and the operand that is added."""
        name, at = self.function, self.operand
        if name == "einsum":
            return self._einsum(ranks)
        if name == "linear":
            x, weight = at("input"), at("weight")
            assert x is not None
            assert weight is not None
            batch = _LETTERS[: ranks[x] - 1]
            rows = "Z" if ranks[weight] == 2 else ""
            return ((x, f"{batch}Y"), (weight, f"{rows}Y")), batch + rows, at("bias")
        if name == "bilinear":
            one, two, weight = at("input1"), at("input2"), at("weight")
            assert one is not None
            assert two is not None
            assert weight is not None
            batch = _LETTERS[: ranks[one] - 1]
            return ((one, f"{batch}X"), (two, f"{batch}Y"), (weight, "ZXY")), f"{batch}Z", at("bias")
        order = [int(str(value["in"])) for value in self.args if isinstance(value, dict) and "in" in value]
        added = order.pop(0) if name in ("addmm", "addmv", "baddbmm") else None
        one, two = order[:2]
        if name == "inner":
            a, b = _LETTERS[: ranks[one] - 1], _LETTERS[ranks[one] : ranks[one] + ranks[two] - 1]
            return ((one, f"{a}Y"), (two, f"{b}Y")), a + b, added
        if name in ("outer", "ger"):
            return ((one, "X"), (two, "Z")), "XZ", added
        lead = max(ranks[one], ranks[two]) - 2
        batch = _LETTERS[: max(lead, 0)]
        left = batch[len(batch) - (ranks[one] - 2) :] + "X" if ranks[one] > 1 else ""
        right = batch[len(batch) - (ranks[two] - 2) :] if ranks[two] > 1 else ""
        last = "Z" if ranks[two] > 1 else ""
        out = batch + ("X" if ranks[one] > 1 else "") + last
        return ((one, f"{left}Y"), (two, f"{right}Y{last}")), out, added

    def _einsum(self, ranks: Sequence[int]) -> tuple[Terms, str, int | None]:
        equation = str(self.arg("equation")).replace(" ", "")
        left, arrow, out = equation.partition("->")
        parts = left.split(",")
        operands = [at for at in self.operands("tensors") if at is not None]
        spare = [letter for letter in _LETTERS if letter not in equation]
        widest = max(ranks[at] - len(part.replace("...", "")) for at, part in zip(operands, parts, strict=True))
        dots = "".join(spare[:widest])
        terms = []
        for at, part in zip(operands, parts, strict=True):
            own = dots[len(dots) - (ranks[at] - len(part.replace("...", ""))) :] if "..." in part else ""
            terms.append((at, part.replace("...", own)))
        if not arrow:
            letters = "".join(parts).replace("...", "")
            out = ("..." if "..." in left else "") + "".join(sorted(x for x in set(letters) if letters.count(x) == 1))
        return tuple(terms), out.replace("...", dots), None

    def rule(self, ctx: Context, *inputs: Dims) -> Dims:
        terms, out, added = self.terms([len(dims) for dims in inputs])
        table: dict[str, Layout] = {}
        for at, letters in terms:
            for letter, dim in zip(letters, inputs[at], strict=True):
                if letter in table and letter not in out and self.function != "einsum":
                    ctx.unify(table[letter], dim)  # what is summed over is not broadcast, one unit neither
                elif letter in table:
                    table[letter] = agree(ctx, table[letter], dim)
                else:
                    table[letter] = dim
        summed = [letter for letter in table if letter not in out]
        for letter in summed:
            ctx.sum_over(table[letter], "it is multiplied and summed over", *(at for at, _ in terms))
        self._say_roles(ctx, inputs, terms, out)
        self._name_factors(ctx, terms, table, inputs)
        found = tuple(table[letter] for letter in out)
        if added is not None:
            lead = len(found) - len(inputs[added])
            for dim, own in zip(found[lead:], inputs[added], strict=True):
                agree(ctx, dim, own)
            last = len(inputs[added]) - 1
            ctx.use(
                added, [None if dim.constant == 1 else "write" for dim in inputs[added]], "table" if last else "bias"
            )
        return found

    def _say_roles(self, ctx: Context, inputs: Sequence[Dims], terms: Terms, out: str) -> None:
        for place, (at, letters) in enumerate(terms):
            others = {letter for other, (_, held) in enumerate(terms) if other != place for letter in held}
            roles: list[Role | None] = ["write" if letter in out else "read" for letter in letters]
            ctx.use(at, roles, "weight")
            first = at == min(operand for operand, _ in terms)
            inner: list[Role | None] = [
                None if letter in out or letter not in others else "read" if first else "write" for letter in letters
            ]
            ctx.use(at, inner, "weight", inner=True)

    def _name_factors(self, ctx: Context, terms: Terms, table: Mapping[str, Layout], inputs: Sequence[Dims]) -> None:
        """Products of activations by head: which factor is the heads, which the features of one head."""
        if self.function not in ("matmul", "bmm", "einsum", "baddbmm"):
            return
        for _, letters in terms:
            heads = table[letters[-3]] if len(letters) > 2 else None
            if heads is None:
                continue
            mixed = ctx.length(heads) is None and not ctx.fixed(heads)  # batch and heads in one dimension
            if len(letters) > 3 or mixed:
                ctx.hint(heads, "heads")
                ctx.hint(table[letters[-1]], "head_dim")
                ctx.hint(table[letters[-2]], "head_dim")

    def flops(self, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
        terms, _, _ = self.terms([len(shape) for shape in inputs])
        if len(terms) < 2:
            return 0
        sizes: dict[str, int] = {}
        for at, letters in terms:
            for letter, size in zip(letters, inputs[at], strict=True):
                sizes[letter] = max(size, sizes.get(letter, 1))
        return 2 * prod(sizes.values())


@register
class Attend(Call):
    """``softmax(scale * q k^T + mask) v`` over ``[..., heads, time, features]``; grouped-query heads are a product."""

    op: Literal["attend"] = "attend"
    targets: ClassVar[tuple[str, ...]] = ("scaled_dot_product_attention",)

    def rule(self, ctx: Context, *inputs: Dims) -> Dims:
        q, k, v = (
            inputs[at] for at in (self.operand("query"), self.operand("key"), self.operand("value")) if at is not None
        )
        if not len(q) == len(k) == len(v):
            raise ctx.error("queries, keys and values of different rank")
        out = list(q)
        for position in range(len(q) - 3):
            for other in (k, v):
                out[position] = agree(ctx, out[position], other[position])
        if len(q) > 2:
            heads, shared = ctx.number(q[-3]), ctx.number(k[-3])
            if self.arg("enable_gqa") and heads != shared:
                ctx.unify(k[-3], v[-3])
                ctx.hint(k[-3], "kv_heads")
                share = ctx.unknown(heads // shared)
                ctx.unify(q[-3], times(k[-3], share))
                ctx.hint(share, "queries_per_kv")
            else:
                out[-3] = agree(ctx, agree(ctx, q[-3], k[-3]), v[-3])  # one head of keys may serve all queries
                self._name_heads(ctx, out[-3])
        ctx.unify(q[-1], k[-1])
        ctx.unify(k[-2], v[-2])
        ctx.hint(q[-1], "head_dim")
        ctx.hint(v[-1], "head_dim")
        ctx.contract(q[-1], "queries and keys are multiplied along it")
        ctx.couple(k[-2], "attention takes a softmax along it")
        if self.arg("is_causal"):
            for time in (q[-2], k[-2]):
                ctx.freeze(time, "a causal mask depends on its order")
        mask = self.operand("attn_mask")
        if mask is not None:
            full = (*out[:-2], q[-2], k[-2])
            dims = inputs[mask]
            for dim, own in zip(full[len(full) - len(dims) :], dims, strict=True):
                agree(ctx, dim, own)
            ctx.use(mask, [None if dim.constant == 1 else "write" for dim in dims], "table")
        return (*out[:-1], v[-1])

    def _name_heads(self, ctx: Context, heads: Layout) -> None:
        """A product of two is key-value heads times the queries that share each."""
        if len(heads.terms) == 1 and len(heads.terms[0]) == 2 and all(isinstance(f, str) for f in heads.terms[0]):
            for factor, role in zip(heads.terms[0], ("kv_heads", "queries_per_kv"), strict=True):
                ctx.hint(atom(str(factor)), role)
        else:
            ctx.hint(heads, "heads")

    def flops(self, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
        query, key = inputs[0], inputs[1]
        return 2 * prod(outputs[0][:-1]) * key[-2] * (query[-1] + outputs[0][-1])
