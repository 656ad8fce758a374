"""GraLoRALinear: a frozen linear layer with named granular low-rank adapters."""

from __future__ import annotations

from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from gralora import functional
from gralora.nn.adapters import WHO, check_dtypes
from gralora.nn.grid import Grid
from gralora.nn.merging import MergeableLayer
from gralora.nn.spec import check_int, make_spec


class GraLoRALinear(MergeableLayer):
    """Linear layer ``y = x weightᵀ + bias`` whose weight is frozen and whose adapters train.

    Each adapter's update is a grid of ``k_out x k_in`` blocks, each of rank ``s = r / k_in``
    (GraLoRA, arXiv 2505.20355, section 3); ``k=1`` is LoRA. A fresh adapter changes nothing: A is
    Kaiming-uniform on fan-in ``n`` as in PEFT, B is zero.

    Args:
        in_features: ``N``.
        out_features: ``M``.
        r: rank that each output block sees; a multiple of ``k_in``. PEFT's ``r``.
        k: blocks per axis, a pair ``(k_out, k_in)``, or ``"auto"`` (see
            :func:`gralora.nn.grid.resolve_grid`). PEFT's ``gralora_k``.
        alpha: the adapter is scaled by ``alpha / (r + hybrid_r)``; None means ``2 * r``.
        hybrid_r: rank of an additional plain LoRA part. PEFT's ``hybrid_r``.
        dropout: probability of dropping an element of the adapter's input while training.
        bias: whether the layer has a (frozen) bias.
        use_rslora: scale by ``alpha / sqrt(r + hybrid_r)`` instead.
        device: of all parameters.
        dtype: of weight and bias.
        adapter_dtype: of the adapters; None means `dtype`, float32 where that is bfloat16 or
            float16.

    Shape:
        ``[..., in_features]`` to ``[..., out_features]``; any leading sizes, zero tokens too.

    Attributes:
        weight: ``[M, N]``, frozen.
        bias: ``[M]``, frozen, or None.
        gralora_A: per adapter ``[k_in, n, k_out*s]``.
        gralora_B: per adapter ``[k_out, k_in*s, m]``.
        lora_A: per hybrid adapter ``[hybrid_r, N]``.
        lora_B: per hybrid adapter ``[M, hybrid_r]``.
        adapters: the :class:`AdapterSpec` of each adapter by name.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: an argument out of range, or a grid that does not fit the layer or the rank.

    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int = 32,
        k: Grid = 2,
        alpha: float | None = None,
        hybrid_r: int = 0,
        dropout: float = 0.0,
        bias: bool = True,
        use_rslora: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        adapter_dtype: torch.dtype | None = None,
    ) -> None:
        check_int(WHO, "in_features", in_features, 1)
        check_int(WHO, "out_features", out_features, 1)
        spec = make_spec(
            in_features,
            out_features,
            r=r,
            k=k,
            alpha=alpha,
            hybrid_r=hybrid_r,
            dropout=dropout,
            use_rslora=use_rslora,
        )
        weight = torch.empty(out_features, in_features, device=device, dtype=dtype)
        bias_tensor = torch.empty(out_features, device=device, dtype=dtype) if bias else None
        check_dtypes(weight.dtype, adapter_dtype)
        super().__init__(
            nn.Parameter(weight, requires_grad=False),
            None if bias_tensor is None else nn.Parameter(bias_tensor, requires_grad=False),
        )
        self._create_adapter("default", spec, adapter_dtype)
        self.reset_parameters()
        self.set_adapter("default")

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        r: int = 32,
        k: Grid = 2,
        alpha: float | None = None,
        hybrid_r: int = 0,
        dropout: float = 0.0,
        use_rslora: bool = False,
        *,
        adapter_dtype: torch.dtype | None = None,
    ) -> GraLoRALinear:
        """Adapt an existing layer, keeping its very weight and bias tensors, which become frozen.

        The result has one adapter, named ``"default"``, and the training mode of `linear`. Merging
        writes to the shared weight, so `linear` itself changes with it.

        Raises:
            TypeError: `linear` is no ``nn.Linear``, a subclass with a forward of its own, or its
                weight is no parameter.
            ValueError: as the constructor.

        """
        who = f"{WHO}.from_linear"
        _check_linear(linear, who)
        spec = make_spec(
            linear.in_features,
            linear.out_features,
            r=r,
            k=k,
            alpha=alpha,
            hybrid_r=hybrid_r,
            dropout=dropout,
            use_rslora=use_rslora,
            who=who,
        )
        check_dtypes(linear.weight.dtype, adapter_dtype)
        layer = cls.without_adapters(linear)
        layer._create_adapter("default", spec, adapter_dtype)
        layer.reset_adapter("default")
        layer.set_adapter("default")
        return layer

    @classmethod
    def without_adapters(cls, linear: nn.Linear) -> GraLoRALinear:
        """Take over an existing layer as :meth:`from_linear` does, to be adapted afterwards.

        Raises:
            TypeError, ValueError: as :meth:`from_linear`.

        """
        _check_linear(linear, f"{WHO}.without_adapters")
        layer = cls.__new__(cls)
        weight = cast(nn.Parameter, linear.weight)
        MergeableLayer.__init__(layer, weight, cast("nn.Parameter | None", linear.bias))
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the frozen layer and the active adapters that are not merged into its weight.

        Args:
            x: ``[..., N]`` in the weight's dtype (any floating dtype under autocast).

        Returns:
            ``[..., M]`` in x's dtype, or autocast's.

        """
        live = self._live_adapters()
        weight, bias = self._base()
        if not live:
            return nn.functional.linear(x, weight, bias)
        spec = self.adapters[live[0]]
        A, B, lora_A, lora_B = self._factors(live[0])
        y = functional.gralora_linear(
            x,
            weight,
            bias,
            A,
            B,
            scaling=spec.scaling,
            lora_A=lora_A,
            lora_B=lora_B,
            dropout_p=spec.dropout,
            training=self.training,
        )
        for name in live[1:]:
            spec = self.adapters[name]
            A, B, lora_A, lora_B = self._factors(name)
            y = functional.gralora_add(
                y,
                x,
                A,
                B,
                scaling=spec.scaling,
                lora_A=lora_A,
                lora_B=lora_B,
                dropout_p=spec.dropout,
                training=self.training,
            )
        return y

    def _live_adapters(self) -> tuple[str, ...]:
        if not self._enabled:
            return ()
        if not self._merged:
            return self._active
        return tuple(name for name in self._active if name not in self._merged)

    def extra_repr(self) -> str:
        """Sizes, and what is attached, active and merged."""
        lines = [
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        ]
        for name, spec in self.adapters.items():
            marks = [
                mark
                for mark, holds in (
                    ("active", self._enabled and name in self._active),
                    ("merged", name in self._merged),
                )
                if holds
            ]
            lines.append(f"{name}: {spec} ({', '.join(marks) or 'inactive'})")
        return "\n".join(lines)


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is an ``nn.Linear`` that computes what torch's own does."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def has_computed_weight(linear: nn.Linear) -> bool:
    """Whether the weight is the result of a computation, as a parametrisation's is."""
    return not isinstance(linear.weight, nn.Parameter)


def _check_linear(linear: nn.Module, who: str) -> None:
    if not is_plain_linear(linear):
        raise TypeError(
            f"{who}: needs a torch.nn.Linear with torch's own forward, got "
            f"{type(linear).__module__}.{type(linear).__qualname__}"
        )
    if has_computed_weight(linear):
        raise TypeError(
            f"{who}: weight must be a parameter, got one that is computed (parametrised, pruned or "
            "weight-normed); make the computation permanent first"
        )
    check_int(who, "in_features", linear.in_features, 1)
    check_int(who, "out_features", linear.out_features, 1)
    check_dtypes(linear.weight.dtype, None)
