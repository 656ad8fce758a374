"""The tensors of one adapter under the keys of PEFT's file.

======================================= ============================================= ==========
key, after ``base_model.model.``        what it holds                                 shape
======================================= ============================================= ==========
``<module>.gralora_A``                  A                                 ``[k_in, n, k_out*s]``
``<module>.gralora_B``                  B                                 ``[k_out, k_in*s, m]``
``<module>.gralora_A_general.weight``   lora_A of a hybrid                          ``[r0, N]``
``<module>.gralora_B_general.weight``   lora_B of a hybrid                          ``[M, r0]``
``<module>.base_layer.bias``            trained bias of an adapted layer                ``[M]``
``<module>.bias``                       trained bias of another module
``<module>.<name>``                     state of a module saved as a whole
======================================= ============================================= ==========

The factors of fused experts have the name of their parameter in the place of the module's, and one
more size in front, that of the experts.

Source: what ``save_pretrained`` of PEFT 0.21 writes; fused experts are this package's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gralora.injection.experts import fused_sizes
from gralora.injection.record import AdapterRecord
from gralora.injection.saved_module import SavedModule
from gralora.nn.kinds import sizes
from gralora.nn.spec import AdapterSpec
from gralora.nn.starts import is_pissa

PREFIX = "base_model.model."
FACTOR_A = ".gralora_A"
_FACTORS = {
    FACTOR_A: "gralora_A",
    ".gralora_B": "gralora_B",
    ".gralora_A_general.weight": "lora_A",
    ".gralora_B_general.weight": "lora_B",
}
_PLAIN_FACTORS = 2
# What a PiSSA adapter started with, by the factor that it is for. No key of a file: see pissa.py.
PRINCIPALS = {FACTOR_A: ".principal_A", ".gralora_B": ".principal_B"}


@dataclass(frozen=True)
class Wanted:
    """What a key's tensor must be like.

    Attributes:
        shape: its sizes.
        dtype: of the model's own tensor; any floating dtype may stand for a floating one. None for
            a factor of an adapter.

    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None


def wanted_tensors(model: nn.Module, record: AdapterRecord) -> dict[str, Wanted]:
    """What each key of an adapter must be like, for a model before or after its injection.

    Args:
        model: unwrapped.
        record: the adapter.

    """
    wanted = {}
    for name, spec in record.targets.items():
        experts, widths = _sizes(model, name, record)
        for suffix, shape in _factor_shapes(*widths, spec):
            wanted[PREFIX + name + suffix] = Wanted((*experts, *shape), None)
    for name in record.biases:
        wanted[_bias_key(name, record)] = _like(_own_tensor(model, name))
    for name in record.saved_modules:
        module = model.get_submodule(name)
        original = module.original_module if isinstance(module, SavedModule) else module
        for inner, tensor in _state(original):
            wanted[f"{PREFIX}{name}.{inner}"] = _like(tensor)
    return wanted


def live_tensors(
    model: nn.Module,
    record: AdapterRecord,
    adapter_name: str,
    modules: Mapping[str, nn.Module] | None = None,
) -> dict[str, Tensor]:
    """The very tensors that an injected model computes with, by key.

    Args:
        model: unwrapped.
        record: the adapter's.
        adapter_name: its name.
        modules: the adapted layers and saved modules where the model does not have them yet.

    """
    find = model.get_submodule if modules is None else modules.__getitem__
    tensors = {}
    for name, spec in record.targets.items():
        layer = find(name)
        for suffix, attribute in _present_factors(spec):
            tensors[PREFIX + name + suffix] = getattr(layer, attribute)[adapter_name]
    for key, name in zip(bias_keys(record), record.biases, strict=True):
        tensors[key] = _own_tensor(model, name)
    for name in record.saved_modules:
        module = find(name)
        assert isinstance(module, SavedModule)
        for inner, tensor in _state(module.modules_to_save[adapter_name]):
            tensors[f"{PREFIX}{name}.{inner}"] = tensor
    return tensors


def bias_keys(record: AdapterRecord) -> list[str]:
    """Keys of the tensors that are the model's own: all others are the adapter's."""
    return [_bias_key(name, record) for name in record.biases]


def adapted_modules(keys: Iterator[str]) -> set[str]:
    """Names of the modules, and fused parameters, whose factors are among the keys of a file."""
    names = (key.removeprefix(PREFIX) for key in keys)
    return {name.removesuffix(FACTOR_A) for name in names if name.endswith(FACTOR_A)}


def _present_factors(spec: AdapterSpec) -> list[tuple[str, str]]:
    factors = list(_FACTORS.items())
    present = factors if spec.hybrid_r else factors[:_PLAIN_FACTORS]
    if is_pissa(spec.init_weights):
        present += [(suffix, suffix.removeprefix(".")) for suffix in PRINCIPALS.values()]
    return present


def _sizes(
    model: nn.Module, name: str, record: AdapterRecord
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """The sizes that come before those of each factor, and ``(N, M)``."""
    if name not in record.parameters:
        return (), sizes(model.get_submodule(name))
    owner, _, attribute = name.rpartition(".")
    experts, in_features, out_features = fused_sizes(model.get_submodule(owner), attribute)
    return (experts,), (in_features, out_features)


def _factor_shapes(
    in_features: int, out_features: int, spec: AdapterSpec
) -> Iterator[tuple[str, tuple[int, ...]]]:
    n, m = in_features // spec.k_in, out_features // spec.k_out
    shapes = {
        "gralora_A": (spec.k_in, n, spec.k_out * spec.s),
        "gralora_B": (spec.k_out, spec.r, m),
        "lora_A": (spec.hybrid_r, in_features),
        "lora_B": (out_features, spec.hybrid_r),
    }
    shapes |= {"principal_A": shapes["gralora_A"], "principal_B": shapes["gralora_B"]}
    for suffix, attribute in _present_factors(spec):
        yield suffix, shapes[attribute]


def _bias_key(name: str, record: AdapterRecord) -> str:
    module = name.rpartition(".")[0]
    return PREFIX + (f"{module}.base_layer.bias" if module in record.targets else name)


def _own_tensor(model: nn.Module, name: str) -> Tensor:
    module, _, attribute = name.rpartition(".")
    tensor = getattr(model.get_submodule(module), attribute)
    assert isinstance(tensor, Tensor)
    return tensor


def _state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers, the tensors themselves."""
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            yield name, value


def _like(tensor: Tensor) -> Wanted:
    return Wanted(tuple(tensor.shape), tensor.dtype)
