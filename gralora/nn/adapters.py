"""A frozen weight with named adapters: what they are, which are active, which train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gralora.nn.grid import Grid
from gralora.nn.spec import AdapterSpec, check_adapter_name, make_spec

# Opens the error messages: users know these classes as one.
WHO = "GraLoRALinear"

_LOW_PRECISION = (torch.bfloat16, torch.float16)


class AdaptedLayer(nn.Module):
    """Holds a frozen weight and bias, and the factors of named adapters.

    Args:
        weight: ``[M, N]``; taken over as it is, and frozen.
        bias: ``[M]`` or None; likewise.

    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
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

    @property
    def active_adapters(self) -> list[str]:
        """Names of the active adapters, in the order in which they are applied."""
        return list(self._active)

    @property
    def can_unmerge(self) -> bool:
        """Whether no adapter is merged, or the base weight was kept."""
        return not self._merged or self._base_weight is not None

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
        who = f"{WHO}.add_adapter"
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
        check_dtypes(self.weight.dtype, adapter_dtype)
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
            raise ValueError(f"{WHO}.set_adapter: a name must appear once, got {list(wanted)}")
        self._active = wanted
        self._set_trainable()

    def enable_adapters(self, enabled: bool) -> None:
        """Turn all adapters on, or off: the layer is then the frozen one and nothing trains."""
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
                f"{WHO}.delete_adapter: {name!r} is merged into the weight; {self._way_out()}"
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
                f"{WHO}.reset_parameters: {list(self._merged)} are merged into the weight; "
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
                f"{WHO}.reset_adapter: {name!r} is merged into the weight; {self._way_out()}"
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
                f"{WHO}.{method}: no adapter is named {name!r} (present: {self._names()})"
            )

    def _known_names(self, names: str | Sequence[str], method: str) -> tuple[str, ...]:
        wanted = (names,) if isinstance(names, str) else names
        if not isinstance(wanted, Sequence) or not all(isinstance(name, str) for name in wanted):
            raise TypeError(
                f"{WHO}.{method}: adapter names must be a str or a sequence of str, got {names!r}"
            )
        for name in wanted:
            self._check_known(name, method)
        return tuple(wanted)

    def _factors(self, name: str) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        hybrid = self.adapters[name].hybrid_r > 0
        return (
            self._factor("gralora_A", name),
            self._factor("gralora_B", name),
            self._factor("lora_A", name) if hybrid else None,
            self._factor("lora_B", name) if hybrid else None,
        )

    # nn.Module looks for a parameter everywhere else before it finds it, which for a small layer
    # takes as long as a kernel's launch. A tensor that stands in for one is an attribute alone.

    def _base(self) -> tuple[Tensor, Tensor | None]:
        parameters: Any = self._parameters
        if "weight" in parameters and "bias" in parameters:
            return parameters["weight"], parameters["bias"]
        return self.weight, self.bias

    def _factor(self, kind: str, name: str) -> Tensor:
        factors: Any = self._modules[kind]
        parameters = factors._parameters
        factor: Tensor = (parameters if name in parameters else factors)[name]
        return factor

    def _way_out(self) -> str:
        if self._base_weight is not None:
            return "unmerge() first"
        return "it was merged with keep=False, so build a new layer from the weight instead"


def check_dtypes(weight: torch.dtype, adapter: torch.dtype | None, *, who: str = WHO) -> None:
    """Raise TypeError for a dtype that the operators do not support."""
    supported = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    for name, dtype in (("dtype", weight), ("adapter_dtype", adapter)):
        if dtype is not None and dtype not in supported:
            raise TypeError(
                f"{who}: {name} must be float64, float32, bfloat16 or float16, got {dtype}"
            )
