"""Layers whose weight can be the residual that PiSSA adapters leave of it.

Such an adapter starts as a part of the weight, and that part is taken out of the weight. So that
the layer goes on being the base layer plus its adapters, the part is kept beside the trained
factors: while the adapter does not act, the part acts in its place, and it is put back where the
adapter is deleted. With ``W'`` the weight now and ``P`` the parts that were taken out of ``W``,

    W = W' + sum of all P          y = x W'ᵀ + (active: trained factors; others: P)

up to one rounding to the weight's dtype each time a part is taken out or put back, or the layer is
cast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gralora import functional
from gralora.nn import sharing
from gralora.nn.inplace import InPlaceLayer
from gralora.nn.pissa import check_finite, check_pissa, principal_factors
from gralora.nn.principals import Principals
from gralora.nn.spec import AdapterSpec
from gralora.nn.starts import is_pissa


class ResidualLayer(InPlaceLayer):
    """A layer with a weight of its own, of which adapters may have taken a part.

    Args:
        in_features: ``N``.
        out_features: ``M``.

    Attributes:
        principal_A: per PiSSA adapter the A with which it started, a buffer. A cast of the layer to
            16 bits leaves it in float32, since the weight lacks just that.
        principal_B: likewise the B.

    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.principal_A = Principals()
        self.principal_B = Principals()
        # Adapters whose part the weight lacks now, whether they act or not.
        self._taken_out: tuple[str, ...] = ()

    def check_start(self, spec: AdapterSpec, *, who: str) -> None:
        """Raise unless an adapter can start here as its `init_weights` says.

        Raises:
            ValueError: a rank or a scale with which it cannot, or a weight that is not finite.
            RuntimeError: an adapter is merged, or the weight is another layer's too or has no
                values.

        """
        if not is_pissa(spec.init_weights):
            return
        check_weight(spec, self._matrix(self.weight.detach()), who=who, layer=self)
        if self._merged:
            raise RuntimeError(
                f"{who}: with init_weights={spec.init_weights!r} no adapter may be merged, got "
                f"{list(self._merged)} ({self._way_out()})"
            )

    @torch.no_grad()
    def reset_adapter(self, name: str, *, generator: torch.Generator | None = None) -> None:
        """Initialise one adapter anew, as its `init_weights` says.

        A PiSSA adapter gets the very factors back that it started with.

        Args:
            name: of the adapter.
            generator: of the random numbers, on the adapter's device; None means torch's default.

        Raises:
            ValueError: an unknown name.
            RuntimeError: the adapter is merged into the weight.

        """
        super().reset_adapter(name, generator=generator)
        spec = self.adapters[name]
        if not is_pissa(spec.init_weights):
            return
        principal = self.principal_A[name], self.principal_B[name]
        if name not in self._taken_out:
            for factor, value in zip(
                principal, principal_factors(self.base_matrix(), spec, generator), strict=True
            ):
                factor.copy_(value)
        self.gralora_A[name].copy_(principal[0])
        self.gralora_B[name].copy_(principal[1])

    def reset_parameters(self) -> None:
        """Initialise everything anew: a weight and bias of its own, then all adapters.

        For layers built on the meta device and made real with ``to_empty``, as FSDP does; a
        pretrained weight is overwritten.

        Raises:
            RuntimeError: an adapter is merged into the weight, or a PiSSA adapter is to start from
                a weight that is sharded.

        """
        if not self._merged:
            for spec in self.adapters.values():
                self._check_fit(spec, f"{self._who}.reset_parameters")
            self._taken_out = ()
        super().reset_parameters()
        for name in self.adapters:
            self.take_out(name)

    @torch.no_grad()
    def base_matrix(self) -> Tensor:
        """``W [M, N]`` of the base layer, before any part was taken out.

        Returns:
            The weight itself where it is whole; else a new tensor, in float32 or float64.

        """
        matrix = self._matrix(self.weight.detach())
        if not self._taken_out:
            return matrix
        whole = matrix.to(torch.promote_types(matrix.dtype, torch.float32), copy=True)
        for name in self._taken_out:
            self._add_part(whole, name, 1)
        return whole

    @torch.no_grad()
    def take_out(self, name: str) -> None:
        """Take out of the weight what a prepared adapter starts with, where that is a part of it.

        The weight is written in place, in one pass over it.
        """
        if is_pissa(self.adapters[name].init_weights) and name not in self._taken_out:
            self._add_part(self._matrix(self.weight), name, -1)
            self._taken_out += (name,)

    def lacks_part(self, names: Sequence[str] = ()) -> bool:
        """Whether the weight lacks the part of an adapter that is neither merged nor in `names`."""
        return any(name not in (*self._merged, *names) for name in self._taken_out)

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the weight back what adapters took out of it that are not merged into it.

        Their trained factors then no longer are differences to the weight: for whoever takes the
        layer apart.
        """
        for name in self._taken_out:
            if name not in self._merged:
                self._put_back(name)

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter; where it was active, no other takes its place.

        The weight gets back what a PiSSA adapter took out of it, rounded to its dtype.

        Raises:
            ValueError: an unknown name.
            RuntimeError: the adapter is merged into the weight, or the weight is sharded and cannot
                get its part back.

        """
        if name in self._taken_out and name not in self._merged:
            self.check_delete(name)
            self._put_back(name)
        super().delete_adapter(name)
        for factors in (self.principal_A, self.principal_B):
            if name in factors:
                del factors[name]

    def check_delete(self, name: str) -> None:
        """Raise RuntimeError where the weight could not get back what an adapter took out of it."""
        if name in self._taken_out and type(self.weight) not in (nn.Parameter, Tensor):
            raise RuntimeError(
                f"{self._who}.delete_adapter: a weight must be whole to get back what an adapter "
                f"took out of it, got a {type(self.weight).__name__} (enable_adapters(False) or "
                "another adapter gives the base layer's outputs)"
            )

    def delta_weight(self, name: str = "default") -> Tensor:
        """Difference ``[M, N]`` to the base layer that an adapter makes, in the adapter's dtype.

        Differentiable where the adapter trains, as a penalty on it needs.

        Raises:
            ValueError: an unknown name.

        """
        delta = super().delta_weight(name)
        if name not in self._taken_out:
            return delta
        A, B = self.principal_A[name], self.principal_B[name]
        part = functional.delta_weight(A, B, scaling=self.adapters[name].scaling)
        return (delta - part).to(delta.dtype)

    def _check_fit(self, spec: AdapterSpec, who: str) -> None:
        """Do what :meth:`check_start` does for a weight whose values are still to come."""
        if is_pissa(spec.init_weights):
            check_pissa(spec, self._matrix(self.weight.detach()), who=who)

    def _create_adapter(
        self, name: str, spec: AdapterSpec, adapter_dtype: torch.dtype | None
    ) -> None:
        super()._create_adapter(name, spec, adapter_dtype)
        if is_pissa(spec.init_weights):
            for principal, factors in (
                (self.principal_A, self.gralora_A),
                (self.principal_B, self.gralora_B),
            ):
                principal[name] = torch.empty_like(factors[name], requires_grad=False)

    def _stand_ins(self, live: Sequence[str]) -> tuple[str, ...]:
        """Adapters whose part acts in their place, since they do not act themselves."""
        return tuple(
            name for name in self._taken_out if name not in live and name not in self._merged
        )

    def _add_part(self, weight: Tensor, name: str, sign: int) -> None:
        # What is kept of a merged weight may lie on the CPU.
        torch.ops.gralora.merge_(
            weight,
            self._factor("principal_A", name).to(weight.device),
            self._factor("principal_B", name).to(weight.device),
            None,
            None,
            scaling=self.adapters[name].scaling,
            sign=sign,
        )

    @torch.no_grad()
    def _put_back(self, name: str) -> None:
        self._add_part(self._matrix(self.weight), name, 1)
        if self._kept is not None:
            self._add_part(self._matrix(self._kept), name, 1)
        self._taken_out = tuple(other for other in self._taken_out if other != name)

    def _check_whole(self, method: str) -> None:
        """Raise where the weight is not what the model had, nor what merging made of it."""
        if self.lacks_part():
            raise RuntimeError(
                f"{self._who}.{method}: the weight lacks what "
                f"{list(self._stand_ins(()))} took out of it; merge or delete them first"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self._taken_out:
            keys = [
                f"{prefix}{key}" for key in ("weight", f"principal_A.{name}", f"principal_B.{name}")
            ]
            given = [key for key in keys if key in state_dict]
            if given and given != keys:
                raise RuntimeError(
                    f"{self._who}.load_state_dict: with a PiSSA adapter a weight must come with "
                    f"what was taken out of it, got {' and '.join(given)} without "
                    f"{' and '.join(key for key in keys if key not in given)} (load the base "
                    "model's weights before the adapter is added)"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


def check_weight(
    spec: AdapterSpec, matrix: Tensor, *, who: str, layer: nn.Module | None = None
) -> None:
    """Raise unless a matrix ``[M, N]`` can give an adapter its start, where that is to be a part.

    Args:
        spec: the adapter's.
        matrix: the weight.
        who: opens the error message.
        layer: whose weight it is already.

    Raises:
        ValueError, RuntimeError: as :func:`gralora.nn.pissa.check_pissa`; the weight is not finite,
            or another GraLoRA layer shares it.

    """
    if not is_pissa(spec.init_weights):
        return
    check_pissa(spec, matrix, who=who)
    check_finite(spec, matrix, who=who)
    if next(sharing.layers_sharing(matrix, layer), None) is not None:
        raise RuntimeError(
            f"{who}: init_weights={spec.init_weights!r} takes a part out of the weight, which "
            "another GraLoRA layer shares and would lose too; give each layer a weight of its own "
            "first"
        )
