"""GraLoRAConv1D: a frozen Conv1D of transformers with named granular low-rank adapters."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from gralora.nn.adapters import check_dtypes
from gralora.nn.grid import Grid
from gralora.nn.kinds import conv1d_class, is_plain_conv1d, sizes
from gralora.nn.residual import check_weight
from gralora.nn.spec import check_int, make_spec
from gralora.nn.starts import KAIMING
from gralora.nn.weighted import WeightedLayer

_WHO = "GraLoRAConv1D"


class GraLoRAConv1D(WeightedLayer):
    """Layer ``y = x weight + bias``, as GPT-2 has it, whose weight is frozen.

    The adapters are those of :class:`gralora.nn.GraLoRALinear`, and so are their methods; the
    operators read the transposed weight as it lies, without a copy. Made by :meth:`from_conv1d` or
    by :func:`gralora.inject`.

    Args:
        in_features: ``N``.
        out_features: ``M``.
        weight: ``[N, M]``, taken over as it is.
        bias: ``[M]``, likewise, or None.

    Shape:
        ``[..., in_features]`` to ``[..., out_features]``; any leading sizes, zero tokens too.

    Attributes:
        weight: ``[N, M]``, frozen: the transpose of an ``nn.Linear``'s.
        bias: ``[M]``, frozen.
        nx: ``N``, as transformers calls it.
        nf: ``M``, as transformers calls it.

    """

    _who = _WHO
    _conv1d: type[nn.Module]

    @classmethod
    def from_conv1d(
        cls,
        conv1d: nn.Module,
        r: int = 32,
        k: Grid = 2,
        alpha: float | None = None,
        hybrid_r: int = 0,
        dropout: float = 0.0,
        use_rslora: bool = False,
        *,
        adapter_dtype: torch.dtype | None = None,
        init_weights: str = KAIMING,
    ) -> GraLoRAConv1D:
        """Adapt an existing layer, keeping its very weight and bias tensors, which become frozen.

        The result has one adapter, named ``"default"``, and the training mode of `conv1d`; the
        other arguments are those of :class:`gralora.nn.GraLoRALinear`.

        Raises:
            TypeError: `conv1d` is no ``Conv1D`` of transformers, or a subclass with a forward of
                its own.
            ValueError: a grid that does not fit the layer or the rank.
            RuntimeError: the weight cannot give up the part with which the adapter has to start.

        """
        who = f"{_WHO}.from_conv1d"
        _check_conv1d(conv1d, who)
        in_features, out_features = sizes(conv1d)
        spec = make_spec(
            in_features,
            out_features,
            r=r,
            k=k,
            alpha=alpha,
            hybrid_r=hybrid_r,
            dropout=dropout,
            use_rslora=use_rslora,
            init_weights=init_weights,
            who=who,
        )
        check_dtypes(None, adapter_dtype, who=who)
        check_weight(spec, cast(Tensor, conv1d.weight).t(), who=who)
        layer = cls.without_adapters(conv1d)
        layer._create_default(spec, adapter_dtype)
        return layer

    @classmethod
    def without_adapters(cls, conv1d: nn.Module) -> GraLoRAConv1D:
        """Take over an existing layer as :meth:`from_conv1d` does, to be adapted afterwards.

        Raises:
            TypeError, ValueError: as :meth:`from_conv1d`.

        """
        _check_conv1d(conv1d, f"{_WHO}.without_adapters")
        layer = cls.__new__(cls)
        weight, bias = conv1d._parameters["weight"], conv1d._parameters["bias"]
        WeightedLayer.__init__(layer, *sizes(conv1d), cast(nn.Parameter, weight), bias)
        layer._conv1d = cast("type[nn.Module]", conv1d_class(conv1d))
        return layer.train(conv1d.training)

    @property
    def nx(self) -> int:
        """``N``."""
        return self.in_features

    @property
    def nf(self) -> int:
        """``M``."""
        return self.out_features

    def plain(self) -> nn.Module:
        """The frozen layer as transformers has it, with the very same tensors.

        Raises:
            RuntimeError: the weight lacks what a PiSSA adapter took out of it.

        """
        self._check_whole("plain")
        with torch.device("meta"):
            conv1d: Any = self._conv1d(self.out_features, self.in_features)
        conv1d.weight = self.weight
        conv1d.bias = self.bias
        plain: nn.Module = conv1d.train(self.training)
        return plain

    def _matrix(self, weight: Tensor) -> Tensor:
        return weight.t()

    @torch.no_grad()
    def _reset_base(self) -> None:
        # As transformers does: its standard deviation is GPT-2's.
        self.weight.normal_(std=0.02)
        if self.bias is not None:
            self.bias.zero_()


def _check_conv1d(conv1d: nn.Module, who: str) -> None:
    if not is_plain_conv1d(conv1d):
        raise TypeError(
            f"{who}: needs a transformers.pytorch_utils.Conv1D with its own forward, got "
            f"{type(conv1d).__module__}.{type(conv1d).__qualname__}"
        )
    weight = conv1d._parameters.get("weight")
    if weight is None or weight.dim() != 2 or hasattr(weight, "__tensor_flatten__"):
        raise TypeError(
            f"{who}: weight must be an ordinary parameter of two dimensions, got "
            f"{'none' if weight is None else f'{type(weight).__name__} {list(weight.shape)}'} "
            "(GraLoRAWrapper takes layers whose weight is packed)"
        )
    in_features, out_features = sizes(conv1d)
    check_int(who, "in_features", in_features, 1)
    check_int(who, "out_features", out_features, 1)
    check_dtypes(weight.dtype, None, who=who)
