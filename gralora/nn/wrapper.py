"""GraLoRAWrapper: any layer that computes for itself, with adapters added to its output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gralora.nn.adapters import check_dtypes
from gralora.nn.grid import Grid
from gralora.nn.kinds import has_forward, sizes
from gralora.nn.merging import MergeableLayer
from gralora.nn.quantisation import Codec, codec_of
from gralora.nn.spec import check_int, make_spec
from gralora.nn.starts import KAIMING

_WHO = "GraLoRAWrapper"


class GraLoRAWrapper(MergeableLayer):
    """``y = base_layer(x) + Δ(x)``: for layers that are no plain matrix, such as quantised ones.

    The base layer stays as it is and runs itself; its output is never written to. The adapters are
    those of :class:`gralora.nn.GraLoRALinear`, and so are their methods.

    Args:
        base_layer: a module with ``in_features``, ``out_features`` and a forward from
            ``[..., in_features]`` to ``[..., out_features]``; its parameters become frozen.
        r: as in :class:`gralora.nn.GraLoRALinear`, like the other arguments.
        k: see r.
        alpha: see r.
        hybrid_r: see r.
        dropout: see r.
        use_rslora: see r.
        adapter_dtype: of the adapters; None means float32 over a quantised base, and else the dtype
            of its weight, float32 where that is bfloat16 or float16.
        init_weights: ``"kaiming"``, ``"gaussian"`` or ``"orthogonal"``; a base that runs itself
            cannot give up a part of its weight.

    Attributes:
        base_layer: the frozen layer.

    Raises:
        TypeError: `base_layer` is no such module, or an argument of the wrong kind.
        ValueError: an argument out of range, or a grid that does not fit the layer or the rank.

    """

    _who = _WHO

    def __init__(
        self,
        base_layer: nn.Module,
        r: int = 32,
        k: Grid = 2,
        alpha: float | None = None,
        hybrid_r: int = 0,
        dropout: float = 0.0,
        use_rslora: bool = False,
        *,
        adapter_dtype: torch.dtype | None = None,
        init_weights: str = KAIMING,
    ) -> None:
        in_features, out_features = _check_base_layer(base_layer, _WHO)
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
            who=_WHO,
        )
        check_dtypes(None, adapter_dtype, who=_WHO)
        self.check_start(spec, who=_WHO)
        self._take_over(base_layer)
        self._create_default(spec, adapter_dtype)

    @classmethod
    def without_adapters(cls, base_layer: nn.Module) -> GraLoRAWrapper:
        """Wrap a layer that is to be adapted afterwards.

        Raises:
            TypeError, ValueError: as the constructor.

        """
        _check_base_layer(base_layer, f"{_WHO}.without_adapters")
        layer = cls.__new__(cls)
        layer._take_over(base_layer)
        return layer

    def _take_over(self, base_layer: nn.Module) -> None:
        super().__init__(*sizes(base_layer))
        self.base_layer = base_layer.requires_grad_(False)
        self.train(base_layer.training)

    @property
    def weight(self) -> Any:
        """The base layer's; owners of layers look at its dtype and device."""
        return getattr(self.base_layer, "weight", None)

    @property
    def bias(self) -> Any:
        """The base layer's, or None."""
        return getattr(self.base_layer, "bias", None)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Call the base layer and add the active adapters that are not merged into it.

        Args:
            x: ``[..., N]``, as the base layer takes it.
            args: further arguments of the base layer.
            kwargs: likewise.

        Returns:
            ``[..., M]`` in the dtype of the base layer's output.

        """
        y: Tensor = self.base_layer(x, *args, **kwargs)
        return self._add_adapters(y, x, self._live_adapters())

    def plain(self) -> nn.Module:
        """The base layer."""
        return self.base_layer

    def extra_repr(self) -> str:
        """What is attached, active and merged; the base layer shows its sizes."""
        return "\n".join(self._adapter_lines())

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As every module's, with the original base while adapters are merged into it.

        Raises:
            RuntimeError: adapters are merged with ``keep=False``.

        """
        self._check_savable(kwargs.get("prefix", ""))
        if not self._merged:
            return super().state_dict(*args, **kwargs)
        codec = self._codec()
        merged = codec.read(self.base_layer)
        codec.install(self.base_layer, self._kept[0])
        try:
            return super().state_dict(*args, **kwargs)
        finally:
            codec.install(self.base_layer, merged)

    def _placement(self) -> tuple[torch.device, torch.dtype]:
        tensors = [*self.base_layer.parameters(), *self.base_layer.buffers()]
        device = tensors[0].device if tensors else torch.device("cpu")
        if codec_of(self.base_layer) is not None:
            return device, torch.float32
        floating = [t.dtype for t in tensors if t.is_floating_point() and t.dtype.itemsize > 1]
        return device, floating[0] if floating else torch.float32

    def _reset_base(self) -> None:
        """Do nothing: the base layer has a method of its own where it can be initialised."""

    def _codec(self) -> Codec:
        codec = codec_of(self.base_layer)
        assert codec is not None
        return codec

    def _check_base(self) -> None:
        codec = codec_of(self.base_layer)
        if codec is None:
            kind = type(self.base_layer)
            raise RuntimeError(
                f"{_WHO}.merge: the base layer must be one whose weight may be added to, got a "
                f"{kind.__module__}.{kind.__qualname__}, whose forward is its own (accepted: "
                "bitsandbytes 8-bit and 4-bit, torchao int8; delta_weight() is what to add)"
            )
        reason = codec.why_not(self.base_layer)
        if reason is not None:
            raise RuntimeError(f"{_WHO}.merge: {reason}")

    def _check_unshared(self) -> None:
        """Do nothing: a quantised weight is replaced, so that none that shares it changes."""

    def _exact(self, names: Sequence[str]) -> Tensor:
        """The base and some adapters, ``[M, N]`` in float32."""
        codec = self._codec()
        # From the original where it is kept, so that nothing is quantised twice.
        base = codec.read(self.base_layer) if self._kept is None else self._kept[0]
        device, _ = self._placement()
        weight = codec.dequantise(codec.moved(base, device), self.base_layer)
        if self._kept is not None:
            names = (*self._merged, *names)
        for name in names:
            A, B, lora_A, lora_B = self._factors(name)
            torch.ops.gralora.merge_(
                weight, A, B, lora_A, lora_B, scaling=self.adapters[name].scaling
            )
        return weight

    def _try_merge(self, names: tuple[str, ...]) -> None:
        codec = self._codec()
        exact = self._exact(names)
        state = codec.quantise(exact, self.base_layer)
        for weight in (exact, codec.dequantise(state, self.base_layer)):
            if not torch.isfinite(weight).all():
                raise ValueError(
                    f"{_WHO}.merge: merging {list(names)} would put Inf or NaN into the weight; "
                    "nothing was changed (safe_merge=True)"
                )

    def _merge_into_base(self, names: Sequence[str]) -> float | None:
        codec = self._codec()
        exact = self._exact(names)
        state = codec.quantise(exact, self.base_layer)
        difference = codec.dequantise(state, self.base_layer).sub_(exact)
        error = torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(exact)
        codec.install(self.base_layer, state)
        self._merged += tuple(names)
        return float(error)

    def _keep_base(self, where: Literal["device", "cpu"]) -> None:
        codec = self._codec()
        device = self._placement()[0] if where == "device" else torch.device("cpu")
        kept = codec.read(self.base_layer) if self._kept is None else self._kept[0]
        # In a tuple, since a parameter that is an attribute would be one of this module's own.
        self._kept = (codec.moved(kept, device),)

    def _restore_base(self) -> None:
        codec = self._codec()
        codec.install(self.base_layer, codec.moved(self._kept[0], self._placement()[0]))


def _check_base_layer(module: nn.Module, who: str) -> tuple[int, int]:
    if not isinstance(module, nn.Module) or not has_forward(module):
        raise TypeError(f"{who}: needs a module with a forward, got a {type(module).__name__}")
    if isinstance(module, MergeableLayer):
        raise TypeError(
            f"{who}: needs a layer without adapters, got a {type(module).__name__} (add_adapter "
            "gives it another)"
        )
    in_features, out_features = sizes(module)
    check_int(who, "in_features", in_features, 1)
    check_int(who, "out_features", out_features, 1)
    return in_features, out_features
