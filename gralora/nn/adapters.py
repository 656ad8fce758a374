"""Named adapters of one layer: what they are, which are active, which train."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gralora import functional
from gralora.nn.grid import Grid
from gralora.nn.initialisation import initialise
from gralora.nn.spec import AdapterSpec, check_adapter_name, make_spec
from gralora.nn.starts import KAIMING, is_pissa

# Opens the error messages of functions that serve every kind of layer.
WHO = "GraLoRALinear"

_LOW_PRECISION = (torch.bfloat16, torch.float16)


class AdaptedLayer(nn.Module):
    """Holds the factors of named adapters beside a frozen base, whatever that is.

    Args:
        in_features: ``N``.
        out_features: ``M``.

    """

    # Opens the error messages: users know each kind of layer by its own name alone.
    _who: ClassVar[str] = WHO

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.gralora_A = nn.ParameterDict()
        self.gralora_B = nn.ParameterDict()
        self.lora_A = nn.ParameterDict()
        self.lora_B = nn.ParameterDict()
        self.adapters: dict[str, AdapterSpec] = {}
        self._active: tuple[str, ...] = ()
        self._enabled = True
        self._merged: tuple[str, ...] = ()
        # What restores the base exactly; its kind is the layer's own business.
        self._kept: Any = None

    @abstractmethod
    def _placement(self) -> tuple[torch.device, torch.dtype]:
        """Where the base lies, and the dtype of its numbers."""

    @abstractmethod
    def _reset_base(self) -> None:
        """Initialise the base anew, where that is this layer's to do."""

    @property
    def active_adapters(self) -> list[str]:
        """Names of the active adapters, in the order in which they are applied."""
        return list(self._active)

    @property
    def can_unmerge(self) -> bool:
        """Whether no adapter is merged, or the base weight was kept."""
        return not self._merged or self._kept is not None

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
        init_weights: str = KAIMING,
    ) -> None:
        """Add a fresh, inactive adapter; the arguments are the constructor's.

        Raises:
            TypeError: an argument of the wrong kind.
            ValueError: a name that is taken or no plain identifier; else as the constructor.
            RuntimeError: the weight cannot give up the part with which the adapter has to start.

        """
        who = f"{self._who}.add_adapter"
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
            init_weights=init_weights,
            who=who,
        )
        check_dtypes(None, adapter_dtype, who=who)
        self.check_start(spec, who=who)
        try:
            self.prepare_adapter(name, spec, adapter_dtype)
            self.take_out(name)
        except BaseException:
            if name in self.adapters:
                self.delete_adapter(name)
            else:
                self._delete_factors(name)
            raise

    def check_start(self, spec: AdapterSpec, *, who: str) -> None:
        """Raise unless an adapter can start here as its `init_weights` says.

        Raises:
            TypeError: it has to start as a part of a weight, and the base has no matrix of its own.
            ValueError, RuntimeError: the weight cannot give up such a part.

        """
        if is_pissa(spec.init_weights):
            raise TypeError(
                f"{who}: init_weights={spec.init_weights!r} takes a part out of the weight, which "
                f"must be the matrix of an nn.Linear or a Conv1D, got {self._who} (accepted: "
                '"kaiming", "gaussian", "orthogonal")'
            )

    def prepare_adapter(
        self,
        name: str,
        spec: AdapterSpec,
        adapter_dtype: torch.dtype | None,
        *,
        fresh: bool = True,
    ) -> None:
        """Do what :meth:`add_adapter` does after its checks, and leave the base alone.

        Args:
            name: of the new adapter.
            spec: what it is.
            adapter_dtype: as in :meth:`add_adapter`.
            fresh: whether to give it the values with which training starts, or none yet.

        """
        self._create_adapter(name, spec, adapter_dtype)
        if fresh:
            self.reset_adapter(name)

    def take_out(self, name: str) -> None:
        """Take out of the base what a prepared adapter starts with, where that is a part of it."""

    def set_adapter(self, names: str | Sequence[str]) -> None:
        """Make exactly these adapters active and trainable, and all others neither.

        Raises:
            TypeError: `names` is neither a str nor a sequence of str.
            ValueError: a name that is unknown or given twice.

        """
        wanted = self._known_names(names, "set_adapter")
        if len(set(wanted)) != len(wanted):
            raise ValueError(
                f"{self._who}.set_adapter: a name must appear once, got {list(wanted)}"
            )
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
                f"{self._who}.delete_adapter: {name!r} is merged into the weight; {self._way_out()}"
            )
        self._active = tuple(active for active in self._active if active != name)
        del self.adapters[name]
        self._delete_factors(name)

    def _delete_factors(self, name: str) -> None:
        for factors in self._all_factors():
            if name in factors:
                del factors[name]

    def reset_parameters(self) -> None:
        """Initialise everything anew: a weight and bias of its own, then all adapters.

        For layers built on the meta device and made real with ``to_empty``, as FSDP does; a
        pretrained weight is overwritten. A base layer that is a module has a method of its own.

        Raises:
            RuntimeError: an adapter is merged into the weight.

        """
        if self._merged:
            raise RuntimeError(
                f"{self._who}.reset_parameters: {list(self._merged)} are merged into the weight; "
                f"{self._way_out()}"
            )
        self._reset_base()
        for name in self.adapters:
            self.reset_adapter(name)

    def reset_adapter(self, name: str, *, generator: torch.Generator | None = None) -> None:
        """Initialise one adapter anew, as its `init_weights` says.

        Args:
            name: of the adapter.
            generator: of the random numbers, on the adapter's device; None means torch's default.

        Raises:
            ValueError: an unknown name.
            RuntimeError: the adapter is merged into the weight.

        """
        self._check_known(name, "reset_adapter")
        if name in self._merged:
            raise RuntimeError(
                f"{self._who}.reset_adapter: {name!r} is merged into the weight; {self._way_out()}"
            )
        self._start(name, generator)

    def _start(self, name: str, generator: torch.Generator | None) -> None:
        """Write the starting values into an adapter's factors."""
        initialise(self.adapters[name], *self._factors(name), generator=generator)

    def _create_adapter(
        self, name: str, spec: AdapterSpec, adapter_dtype: torch.dtype | None
    ) -> None:
        device, dtype = self._placement()
        if dtype in _LOW_PRECISION:
            dtype = torch.float32
        if adapter_dtype is not None:
            dtype = adapter_dtype

        def empty(*shape: int) -> nn.Parameter:
            data = torch.empty(*shape, device=device, dtype=dtype)
            return nn.Parameter(data, requires_grad=False)

        n, m = self.in_features // spec.k_in, self.out_features // spec.k_out
        self.gralora_A[name] = empty(spec.k_in, n, spec.k_out * spec.s)
        self.gralora_B[name] = empty(spec.k_out, spec.k_in * spec.s, m)
        if spec.hybrid_r:
            self.lora_A[name] = empty(spec.hybrid_r, self.in_features)
            self.lora_B[name] = empty(self.out_features, spec.hybrid_r)
        self.adapters[name] = spec

    def _create_default(self, spec: AdapterSpec, adapter_dtype: torch.dtype | None) -> None:
        """Give a layer the one adapter with which it starts, active."""
        self.prepare_adapter("default", spec, adapter_dtype)
        self.take_out("default")
        self.set_adapter("default")

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
                f"{self._who}.{method}: no adapter is named {name!r} (present: {self._names()})"
            )

    def _known_names(self, names: str | Sequence[str], method: str) -> tuple[str, ...]:
        wanted = (names,) if isinstance(names, str) else names
        if not isinstance(wanted, Sequence) or not all(isinstance(name, str) for name in wanted):
            raise TypeError(
                f"{self._who}.{method}: adapter names must be a str or a sequence of str, "
                f"got {names!r}"
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

    def _factor(self, kind: str, name: str) -> Tensor:
        factors: Any = self._modules[kind]
        parameters = factors._parameters
        factor: Tensor = (parameters if name in parameters else factors)[name]
        return factor

    def _live_adapters(self) -> tuple[str, ...]:
        """Names of the adapters that forward has to apply, in order."""
        if not self._enabled:
            return ()
        if not self._merged:
            return self._active
        return tuple(name for name in self._active if name not in self._merged)

    def _add_adapters(self, y: Tensor, x: Tensor, names: Sequence[str]) -> Tensor:
        """``y + Δ(x)`` of some adapters, out of place."""
        for name in names:
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

    def _adapter_lines(self) -> list[str]:
        """One line for each adapter: what it is, whether it is active, whether it is merged."""
        lines = []
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
        return lines

    def _way_out(self) -> str:
        if self._kept is not None:
            return "unmerge() first"
        return "it was merged with keep=False, so build a new layer from the weight instead"


def check_dtypes(
    weight: torch.dtype | None, adapter: torch.dtype | None, *, who: str = WHO
) -> None:
    """Raise TypeError for a dtype that the operators do not support."""
    supported = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    for name, dtype in (("dtype", weight), ("adapter_dtype", adapter)):
        if dtype is not None and dtype not in supported:
            raise TypeError(
                f"{who}: {name} must be float64, float32, bfloat16 or float16, got {dtype}"
            )
