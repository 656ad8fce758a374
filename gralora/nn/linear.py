"""GraLoRALinear: a frozen linear layer with named granular low-rank adapters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from gralora import functional
from gralora.nn import sharing
from gralora.nn.grid import Grid
from gralora.nn.spec import AdapterSpec, check_adapter_name, check_int, make_spec

Keep = Literal["device", "cpu", False]

_WHO = "GraLoRALinear"
_LOW_PRECISION = (torch.bfloat16, torch.float16)


class GraLoRALinear(nn.Module):
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

    weight: nn.Parameter
    bias: nn.Parameter | None

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
        check_int(_WHO, "in_features", in_features, 1)
        check_int(_WHO, "out_features", out_features, 1)
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
        _check_dtypes(weight.dtype, adapter_dtype)
        self._build(
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
        if not isinstance(linear, nn.Linear) or type(linear).forward is not nn.Linear.forward:
            raise TypeError(
                f"{_WHO}.from_linear: needs a torch.nn.Linear with torch's own forward, got "
                f"{type(linear).__module__}.{type(linear).__qualname__}"
            )
        who = f"{_WHO}.from_linear"
        if not isinstance(linear.weight, nn.Parameter):
            raise TypeError(
                f"{who}: weight must be a parameter, got one that is computed (parametrised, "
                "pruned or weight-normed); make the computation permanent first"
            )
        check_int(who, "in_features", linear.in_features, 1)
        check_int(who, "out_features", linear.out_features, 1)
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
        _check_dtypes(linear.weight.dtype, adapter_dtype)
        layer = cls.__new__(cls)
        layer._build(linear.weight, cast("nn.Parameter | None", linear.bias))
        layer._create_adapter("default", spec, adapter_dtype)
        layer.reset_adapter("default")
        layer.set_adapter("default")
        return layer.train(linear.training)

    def _build(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        """Take over the frozen parameters; the constructors' common part."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = weight
        self.register_parameter("bias", bias)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        self.gralora_A = nn.ParameterDict()
        self.gralora_B = nn.ParameterDict()
        self.lora_A = nn.ParameterDict()
        self.lora_B = nn.ParameterDict()
        self.adapters: dict[str, AdapterSpec] = {}
        self._active: tuple[str, ...] = ()
        self._enabled = True
        self._merged: tuple[str, ...] = ()
        self._base_weight: Tensor | None = None
        sharing.register(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled layer."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        sharing.register(self)

    # -- forward ---------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Apply the frozen layer and the active adapters that are not merged into its weight.

        Args:
            x: ``[..., N]`` in the weight's dtype (any floating dtype under autocast).

        Returns:
            ``[..., M]`` in x's dtype, or autocast's.

        """
        live = self._live_adapters()
        if not live:
            return nn.functional.linear(x, self.weight, self.bias)
        spec = self.adapters[live[0]]
        A, B, lora_A, lora_B = self._factors(live[0])
        y = functional.gralora_linear(
            x,
            self.weight,
            self.bias,
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

    def _factors(self, name: str) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        hybrid = self.adapters[name].hybrid_r > 0
        return (
            self.gralora_A[name],
            self.gralora_B[name],
            self.lora_A[name] if hybrid else None,
            self.lora_B[name] if hybrid else None,
        )

    # -- adapters --------------------------------------------------------------------------------

    @property
    def active_adapters(self) -> list[str]:
        """Names of the active adapters, in the order in which they are applied."""
        return list(self._active)

    def add_adapter(
        self,
        name: str,
        r: int = 32,
        k: Grid = 2,
        alpha: float | None = None,
        hybrid_r: int = 0,
        dropout: float = 0.0,
        use_rslora: bool = False,
        *,
        adapter_dtype: torch.dtype | None = None,
    ) -> None:
        """Add a fresh, inactive adapter; the arguments are the constructor's.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: a name that is taken or no plain identifier; else as the constructor.

        """
        who = f"{_WHO}.add_adapter"
        check_adapter_name(name, who=who)
        if name in self.adapters:
            raise ValueError(
                f"{who}: an adapter's name must be new, got {name!r} (present: {self._names()})"
            )
        spec = make_spec(
            self.in_features,
            self.out_features,
            r=r,
            k=k,
            alpha=alpha,
            hybrid_r=hybrid_r,
            dropout=dropout,
            use_rslora=use_rslora,
            who=who,
        )
        _check_dtypes(self.weight.dtype, adapter_dtype)
        self._create_adapter(name, spec, adapter_dtype)
        self.reset_adapter(name)

    def set_adapter(self, names: str | Sequence[str]) -> None:
        """Make exactly these adapters active and trainable, and all others neither.

        Raises:
            TypeError: `names` is neither a str nor a sequence of str.
            ValueError: a name that is unknown or given twice.

        """
        wanted = self._known_names(names, "set_adapter")
        if len(set(wanted)) != len(wanted):
            raise ValueError(f"{_WHO}.set_adapter: a name must appear once, got {list(wanted)}")
        self._active = wanted
        self._set_trainable()

    def enable_adapters(self, enabled: bool) -> None:
        """Turn all adapters on, or off: the layer is then the frozen one and nothing trains.

        Turning them off unmerges first, since the base weight is asked for.

        Raises:
            RuntimeError: off is asked for while merged with ``keep=False``.

        """
        if not enabled and self._merged:
            self.unmerge()
        self._enabled = bool(enabled)
        self._set_trainable()

    def delete_adapter(self, name: str) -> None:
        """Remove an adapter; where it was active, no other takes its place.

        Raises:
            ValueError: an unknown name.
            RuntimeError: the adapter is merged into the weight.

        """
        self._check_known(name, "delete_adapter")
        if name in self._merged:
            raise RuntimeError(
                f"{_WHO}.delete_adapter: {name!r} is merged into the weight; {self._way_out()}"
            )
        self._active = tuple(active for active in self._active if active != name)
        del self.adapters[name]
        for factors in self._all_factors():
            if name in factors:
                del factors[name]

    def reset_parameters(self) -> None:
        """Initialise everything anew: weight and bias as nn.Linear does, then all adapters.

        For layers built on the meta device and made real with ``to_empty``, as FSDP does; a
        pretrained weight is overwritten.

        Raises:
            RuntimeError: an adapter is merged into the weight.

        """
        if self._merged:
            raise RuntimeError(
                f"{_WHO}.reset_parameters: {list(self._merged)} are merged into the weight; "
                f"{self._way_out()}"
            )
        with torch.no_grad():
            bound = 1 / math.sqrt(self.in_features)
            self.weight.uniform_(-bound, bound)
            if self.bias is not None:
                self.bias.uniform_(-bound, bound)
        for name in self.adapters:
            self.reset_adapter(name)

    def reset_adapter(self, name: str) -> None:
        """Initialise one adapter anew: A Kaiming-uniform with ``a = sqrt(5)``, B zero, as in PEFT.

        Raises:
            ValueError: an unknown name.
            RuntimeError: the adapter is merged into the weight.

        """
        self._check_known(name, "reset_adapter")
        if name in self._merged:
            raise RuntimeError(
                f"{_WHO}.reset_adapter: {name!r} is merged into the weight; {self._way_out()}"
            )
        with torch.no_grad():
            A, B, lora_A, lora_B = self._factors(name)
            # Kaiming-uniform with a = sqrt(5) is uniform within 1/sqrt(fan-in).
            bound = 1 / math.sqrt(self.in_features // self.adapters[name].k_in)
            A.uniform_(-bound, bound)
            B.zero_()
            if lora_A is not None and lora_B is not None:
                bound = 1 / math.sqrt(self.in_features)
                lora_A.uniform_(-bound, bound)
                lora_B.zero_()

    def _create_adapter(
        self, name: str, spec: AdapterSpec, adapter_dtype: torch.dtype | None
    ) -> None:
        dtype = adapter_dtype
        if dtype is None:
            low = self.weight.dtype in _LOW_PRECISION
            dtype = torch.float32 if low else self.weight.dtype

        def empty(*shape: int) -> nn.Parameter:
            data = torch.empty(*shape, device=self.weight.device, dtype=dtype)
            return nn.Parameter(data, requires_grad=False)

        n, m = self.in_features // spec.k_in, self.out_features // spec.k_out
        self.gralora_A[name] = empty(spec.k_in, n, spec.k_out * spec.s)
        self.gralora_B[name] = empty(spec.k_out, spec.k_in * spec.s, m)
        if spec.hybrid_r:
            self.lora_A[name] = empty(spec.hybrid_r, self.in_features)
            self.lora_B[name] = empty(self.out_features, spec.hybrid_r)
        self.adapters[name] = spec

    def _all_factors(self) -> tuple[nn.ParameterDict, ...]:
        return self.gralora_A, self.gralora_B, self.lora_A, self.lora_B

    def _set_trainable(self) -> None:
        for factors in self._all_factors():
            for name, parameter in factors.items():
                parameter.requires_grad_(self._enabled and name in self._active)

    def _names(self) -> str:
        return ", ".join(map(repr, self.adapters)) or "none"

    def _check_known(self, name: object, method: str) -> None:
        if name not in self.adapters:
            raise ValueError(
                f"{_WHO}.{method}: no adapter is named {name!r} (present: {self._names()})"
            )

    def _known_names(self, names: str | Sequence[str], method: str) -> tuple[str, ...]:
        wanted = (names,) if isinstance(names, str) else names
        if not isinstance(wanted, Sequence) or not all(isinstance(name, str) for name in wanted):
            raise TypeError(
                f"{_WHO}.{method}: adapter names must be a str or a sequence of str, got {names!r}"
            )
        for name in wanted:
            self._check_known(name, method)
        return tuple(wanted)

    # -- merging ---------------------------------------------------------------------------------

    @property
    def merged(self) -> bool:
        """Whether any adapter is merged into the weight."""
        return bool(self._merged)

    @property
    def merged_adapters(self) -> list[str]:
        """Names of the adapters that are merged into the weight."""
        return list(self._merged)

    def delta_weight(self, name: str = "default") -> Tensor:
        """Weight difference ``[M, N]`` that an adapter stands for, in the adapter's dtype.

        Differentiable where the adapter trains, as a penalty on it needs.

        Raises:
            ValueError: an unknown name.

        """
        self._check_known(name, "delta_weight")
        A, B, lora_A, lora_B = self._factors(name)
        return functional.delta_weight(
            A, B, scaling=self.adapters[name].scaling, lora_A=lora_A, lora_B=lora_B
        )

    @torch.no_grad()
    def merge(
        self,
        safe_merge: bool = False,
        adapter_names: str | Sequence[str] | None = None,
        keep: Keep = "cpu",
    ) -> None:
        """Add adapters to the weight in place, in one pass over it each.

        Every module that holds the same weight tensor changes with it. Other layers of this class
        are noticed and the merge is refused; a tied module of another class is not.

        Args:
            safe_merge: try on a copy first, and leave the weight alone when the result would hold
                an Inf or NaN.
            adapter_names: which; None means the active ones. Those merged already are skipped.
            keep: where the exact base weight is kept from now on for :meth:`unmerge`: on the
                weight's ``"device"``, on the ``"cpu"``, or nowhere (False), also where an earlier
                merge kept it.

        Raises:
            TypeError: `adapter_names` is neither a str nor a sequence of str.
            ValueError: an unknown name or `keep`; with `safe_merge`, a result that is not finite.
            RuntimeError: another layer shares the weight, the weight is on the meta device, or an
                earlier merge with ``keep=False`` left no base weight to keep.

        """
        wanted = (
            self._active if adapter_names is None else self._known_names(adapter_names, "merge")
        )
        if keep not in ("device", "cpu", False):
            raise ValueError(f'{_WHO}.merge: keep must be "device", "cpu" or False, got {keep!r}')
        names = tuple(name for name in dict.fromkeys(wanted) if name not in self._merged)
        if not names:
            return
        self._check_mergeable(keep)
        if safe_merge:
            self._try_merge(names)
        before = self._merged
        self._keep_base(keep)
        try:
            for name in names:
                self._add_to(self.weight, name)
                self._merged += (name,)
        except Exception:
            self._take_back(before)
            raise

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restore the base weight bit for bit.

        Raises:
            RuntimeError: the base weight was not kept (``keep=False``).

        """
        if not self._merged:
            return
        if self._base_weight is None:
            raise RuntimeError(
                f"{_WHO}.unmerge: the base weight was not kept when {list(self._merged)} were "
                'merged with keep=False; merge with keep="cpu" or "device" to be able to unmerge'
            )
        self.weight.copy_(self._base_weight)
        self._base_weight = None
        self._merged = ()

    def _way_out(self) -> str:
        if self._base_weight is not None:
            return "unmerge() first"
        return "it was merged with keep=False, so build a new layer from the weight instead"

    def _check_mergeable(self, keep: Keep) -> None:
        if self.weight.is_meta:
            raise RuntimeError(f"{_WHO}.merge: the weight is on the meta device and has no values")
        if type(self.weight) not in (nn.Parameter, Tensor):
            raise RuntimeError(
                f"{_WHO}.merge: the weight must be an ordinary tensor, got a "
                f"{type(self.weight).__name__}; merge before it is sharded or wrapped"
            )
        if keep and self._merged and self._base_weight is None:
            raise RuntimeError(
                f"{_WHO}.merge: keep={keep!r} asks for the base weight, which the earlier merge of "
                f"{list(self._merged)} with keep=False did not keep; use keep=False again"
            )
        if next(sharing.layers_sharing_weight(self), None) is not None:
            raise RuntimeError(
                f"{_WHO}.merge: the weight is shared with another GraLoRALinear, which would "
                "change too; give each layer a weight of its own before merging"
            )

    def _try_merge(self, names: tuple[str, ...]) -> None:
        trial = self.weight.clone()
        for name in names:
            self._add_to(trial, name)
            if not torch.isfinite(trial).all():
                raise ValueError(
                    f"{_WHO}.merge: merging adapter {name!r} would put Inf or NaN into the weight; "
                    "nothing was changed (safe_merge=True)"
                )

    def _keep_base(self, keep: Keep) -> None:
        if not keep:
            self._base_weight = None
            return
        device = self.weight.device if keep == "device" else torch.device("cpu")
        if self._base_weight is not None:
            self._base_weight = self._base_weight.to(device)
        else:
            self._base_weight = self.weight.detach().to(device, copy=True)

    def _take_back(self, before: tuple[str, ...]) -> None:
        """Undo as much of a merge that failed as the kept base weight allows."""
        if before or self._base_weight is None:
            return
        self.weight.copy_(self._base_weight)
        self._base_weight = None
        self._merged = ()

    def _add_to(self, weight: Tensor, name: str) -> None:
        A, B, lora_A, lora_B = self._factors(name)
        torch.ops.gralora.merge_(weight, A, B, lora_A, lora_B, scaling=self.adapters[name].scaling)

    # -- torch.nn.Module -------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self._merged:
            raise RuntimeError(
                f"{_WHO}.load_state_dict: {list(self._merged)} are merged into the weight of "
                f"{prefix.rstrip('.') or 'this layer'}; {self._way_out()}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Save the base weight of a merged layer, since the adapters are saved beside it."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self._merged:
            return
        if self._base_weight is None:
            raise RuntimeError(
                f"{_WHO}.state_dict: {list(self._merged)} are merged into the weight of "
                f"{prefix.rstrip('.') or 'this layer'} with keep=False and would be applied twice "
                "where the state is loaded; save `layer.weight` alone, as a plain linear layer's"
            )
        destination[prefix + "weight"] = self._base_weight

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


def _check_dtypes(weight: torch.dtype, adapter: torch.dtype | None) -> None:
    supported = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    for name, dtype in (("dtype", weight), ("adapter_dtype", adapter)):
        if dtype is not None and dtype not in supported:
            raise TypeError(
                f"{_WHO}: {name} must be float64, float32, bfloat16 or float16, got {dtype}"
            )
