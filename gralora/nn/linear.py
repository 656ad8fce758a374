"""GraLoRALinear: a frozen linear layer with named granular low-rank adapters."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from gralora.nn.adapters import WHO, check_dtypes
from gralora.nn.early_outputs import Operands
from gralora.nn.grid import Grid
from gralora.nn.kinds import has_computed_weight, has_packed_weight, is_plain_linear
from gralora.nn.residual import check_weight
from gralora.nn.shared_input import SharedInput
from gralora.nn.spec import AdapterSpec, check_int, make_spec
from gralora.nn.starts import KAIMING
from gralora.nn.weighted import WeightedLayer

_Parameter: Any = nn.Parameter


class GraLoRALinear(WeightedLayer):
    """Linear layer ``y = x weightᵀ + bias`` whose weight is frozen and whose adapters train.

    Each adapter's update is a grid of ``k_out x k_in`` blocks, each of rank ``s = r / k_in``
    (GraLoRA, arXiv 2505.20355, section 3); ``k=1`` is LoRA. A fresh adapter changes nothing: by
    default A is Kaiming-uniform on fan-in ``n`` as in PEFT, B is zero.

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
        init_weights: how the factors start (:mod:`gralora.nn.initialisation`): ``"kaiming"``,
            ``"gaussian"``, ``"orthogonal"``, ``"pissa"`` (the weight gives its largest singular
            triplets, block by block, to the adapter) or ``"pissa_niter_N"``, the same by N power
            iterations on random directions.

    Shape:
        ``[..., in_features]`` to ``[..., out_features]``; any leading sizes, zero tokens too.

    Attributes:
        weight: ``[M, N]``, frozen.
        bias: ``[M]``, frozen, or None.
        gralora_A: per adapter ``[k_in, n, k_out*s]``.
        gralora_B: per adapter ``[k_out, k_in*s, m]``.
        lora_A: per hybrid adapter ``[hybrid_r, N]``.
        lora_B: per hybrid adapter ``[M, hybrid_r]``.
        principal_A: per PiSSA adapter the A that it started with, frozen; principal_B likewise.
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
        init_weights: str = KAIMING,
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
            init_weights=init_weights,
        )
        weight = torch.empty(out_features, in_features, device=device, dtype=dtype)
        bias_tensor = torch.empty(out_features, device=device, dtype=dtype) if bias else None
        check_dtypes(weight.dtype, adapter_dtype)
        super().__init__(
            in_features,
            out_features,
            nn.Parameter(weight, requires_grad=False),
            None if bias_tensor is None else nn.Parameter(bias_tensor, requires_grad=False),
        )
        self._check_fit(spec, WHO)
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
        init_weights: str = KAIMING,
    ) -> GraLoRALinear:
        """Adapt an existing layer, keeping its very weight and bias tensors, which become frozen.

        The result has one adapter, named ``"default"``, and the training mode of `linear`. Merging
        writes to the shared weight, so `linear` itself changes with it; ``init_weights="pissa"``
        does so at once.

        Raises:
            TypeError: `linear` is no ``nn.Linear``, a subclass with a forward of its own, or its
                weight is no parameter.
            ValueError: as the constructor.
            RuntimeError: the weight cannot give up the part with which the adapter has to start.

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
            init_weights=init_weights,
            who=who,
        )
        check_dtypes(linear.weight.dtype, adapter_dtype)
        check_weight(spec, linear.weight, who=who)
        layer = cls.without_adapters(linear)
        layer._create_default(spec, adapter_dtype)
        return layer

    @classmethod
    def without_adapters(cls, linear: nn.Linear) -> GraLoRALinear:
        """Take over an existing layer as :meth:`from_linear` does, to be adapted afterwards.

        Raises:
            TypeError, ValueError: as :meth:`from_linear`.

        """
        _check_linear(linear, f"{WHO}.without_adapters")
        layer = cls.__new__(cls)
        WeightedLayer.__init__(
            layer,
            linear.in_features,
            linear.out_features,
            cast(nn.Parameter, linear.weight),
            cast("nn.Parameter | None", linear.bias),
        )
        return layer.train(linear.training)

    # An attribute of the class, for layers that were pickled without it.
    _shared_input: SharedInput | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the frozen layer and the active adapters that are not merged into its weight.

        What an adapter took out of the weight acts in its place while the adapter does not. Where
        siblings share the input (:func:`gralora.share_inputs`), the first of them computes for all.

        Args:
            x: ``[..., N]`` in the weight's dtype (any floating dtype under autocast).

        Returns:
            ``[..., M]`` in x's dtype, or autocast's.

        """
        shared = self._shared_input
        if shared is not None and not is_compiling():
            y = shared.output(self, x)
            if y is not None:
                return y
        return super().forward(x)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a layer that is copied or unpickled, and its place among siblings."""
        super().__setstate__(state)
        if self._shared_input is not None:
            self._shared_input.join(self)

    def _shared_operands(self) -> Operands | None:
        """What this layer would be computed of together with others, or None where it is not.

        That is where it is not the frozen layer and one grid adapter alone, where dropout acts,
        where its call does more than its forward, or where a tensor is not an ordinary one.

        Returns:
            Weight, bias, A, B and what the adapter is.

        """
        state = self.__dict__
        active = state["_active"]
        if len(active) != 1 or state["_merged"] or not state["_enabled"]:
            return None
        name = active[0]
        spec: AdapterSpec = state["adapters"][name]
        if spec.hybrid_r or (spec.dropout and state["training"]):
            return None
        if state["_taken_out"] and self._stand_ins(active):
            return None
        # A hook that comes first may be what brings the weight here (DeepSpeed's ZeRO 3, FSDP), and
        # accelerate's way to do so is another forward.
        if state["_forward_pre_hooks"] or "forward" in state:
            return None
        parameters, modules = state["_parameters"], state["_modules"]
        weight, bias = parameters.get("weight"), parameters.get("bias")
        A = modules["gralora_A"]._parameters.get(name)
        B = modules["gralora_B"]._parameters.get(name)
        if (
            type(weight) is not _Parameter
            or type(A) is not _Parameter
            or type(B) is not _Parameter
            or weight.requires_grad
            # A weight that is sharded elsewhere is flat.
            or weight.dim() != 2
            or (bias is not None and (type(bias) is not _Parameter or bias.requires_grad))
        ):
            return None
        return weight, bias, A, B, spec

    def plain(self) -> nn.Linear:
        """The frozen layer as torch has it, with the very same tensors.

        Raises:
            RuntimeError: the weight lacks what a PiSSA adapter took out of it.

        """
        self._check_whole("plain")
        linear = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device="meta"
        )
        linear.weight = self.weight
        if self.bias is not None:
            linear.bias = self.bias
        return linear.train(self.training)


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
    if has_packed_weight(linear):
        raise TypeError(
            f"{who}: weight must be an ordinary tensor, got a {type(linear.weight).__name__} "
            "(GraLoRAWrapper takes layers with a quantised weight)"
        )
    check_int(who, "in_features", linear.in_features, 1)
    check_int(who, "out_features", linear.out_features, 1)
    check_dtypes(linear.weight.dtype, None)
