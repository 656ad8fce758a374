"""Which tensor of an adapter's file is what, decided from its keys, its config and its shapes.

What a key means without a model is in :mod:`gralora.storage.tensor_names`. The tensors themselves
are still unread here: shapes and dtypes are those of the file's header.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from gralora.adapters.expert_contents import check_parameters, of_one_expert
from gralora.config import GraLoRAConfig
from gralora.injection import names
from gralora.injection.listing import some
from gralora.injection.paths import Suffixes
from gralora.nn.spec import AdapterSpec, make_spec
from gralora.storage.checked_file import Entry
from gralora.storage.config_values import WHO
from gralora.storage.resolution import check_keys
from gralora.storage.stored_config import StoredConfig
from gralora.storage.tensor_names import PREFIX

FACTOR_SUFFIXES: Mapping[str, str] = {
    "A": ".gralora_A",
    "B": ".gralora_B",
    "lora_A": ".gralora_A_general.weight",
    "lora_B": ".gralora_B_general.weight",
}
BASE_LAYER = ".base_layer."
# PEFT's copies of a module that is saved: the trained one and the frozen one.
_COPY, _ORIGINAL = ".modules_to_save.", ".original_module."


@dataclass
class Contents:
    """Keys of a file, by what they are.

    Attributes:
        factors: by module name, the keys of A, B, lora_A and lora_B.
        experts: the same of fused experts, by the name of their parameter.
        specs: by the name of the module or parameter.
        biases: by the tensor's name in the base model.
        saved: likewise.
        frozen: likewise.

    """

    factors: dict[str, dict[str, str]] = field(default_factory=dict)
    experts: dict[str, dict[str, str]] = field(default_factory=dict)
    specs: dict[str, AdapterSpec] = field(default_factory=dict)
    biases: dict[str, str] = field(default_factory=dict)
    saved: dict[str, str] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)


def sort_tensors(config: StoredConfig, entries: Mapping[str, Entry]) -> Contents:
    """Say what each tensor of a file is, once all of them fit the config and one another.

    Raises:
        ValueError: a key that no adapter has, factors that are missing, shapes that disagree, or
            a config that speaks of other modules.
        TypeError: tensors of integers where an adapter has floating ones.

    """
    check_keys(entries)
    contents = Contents()
    fused = frozenset(config.target_parameters)
    others = []
    for key in entries:
        path = key.removeprefix(PREFIX)
        for factor, suffix in FACTOR_SUFFIXES.items():
            if path.endswith(suffix) and len(path) > len(suffix):
                name = path.removesuffix(suffix)
                found = contents.experts if name in fused else contents.factors
                found.setdefault(name, {})[factor] = key
                break
        else:
            others.append(key)
    if not contents.factors and not contents.experts:
        raise ValueError(f"{WHO}: the file must hold factors of an adapter, got {some(entries)}")
    saved = names.saved_entries(
        GraLoRAConfig(modules_to_save=config.modules_to_save, task_type=config.task_type)
    )
    for key in others:
        _sort_other(contents, config, saved, key, entries)
    _check_modules(config, contents)
    for module, keys in contents.factors.items():
        contents.specs[module] = _check_layer(config, module, keys, entries)
    for name, keys in contents.experts.items():
        single = of_one_expert(name, keys, entries)
        contents.specs[name] = _check_layer(config, name, keys, single)
    # Modules that are saved whole may count in integers.
    exempt = {*contents.saved.values(), *contents.frozen.values()}
    for key, entry in entries.items():
        if key not in exempt and not entry.dtype.is_floating_point:
            raise TypeError(f"{WHO}: {key} must be floating, got {entry.dtype}")
    return contents


def _sort_other(
    contents: Contents,
    config: StoredConfig,
    saved: Suffixes,
    key: str,
    entries: Mapping[str, Entry],
) -> None:
    """Sort a tensor that is no factor; `saved` tells the names of modules that are saved whole."""
    path = key.removeprefix(PREFIX)
    module, marker, rest = path.partition(_COPY)
    if marker:
        if f"{PREFIX}{module}.{rest}" not in entries:
            _refuse_key(key)
        # A trained bias of a saved module, stored a second time.
        return
    module, marker, rest = path.partition(_ORIGINAL)
    if marker:
        contents.frozen[f"{module}.{rest}"] = key
        return
    module, marker, rest = path.partition(BASE_LAYER)
    if marker:
        if module not in contents.factors or "." in rest:
            _refuse_key(key)
        trained = config.bias != "none" and rest == "bias"
        (contents.biases if trained else contents.frozen)[f"{module}.{rest}"] = key
        return
    if any(saved.of(owner) for owner in owners(path)):
        contents.saved[path] = key
    elif config.bias == "all" and "bias" in path.rpartition(".")[2]:
        contents.biases[path] = key
    elif path.endswith(".weight"):
        # PEFT stores embeddings beside an adapter of the output head.
        contents.frozen[path] = key
    else:
        _refuse_key(key)


def owners(path: str) -> Iterator[str]:
    """Names of the modules that a tensor lies in, the innermost first."""
    while path := path.rpartition(".")[0]:
        yield path


def _refuse_key(key: str) -> NoReturn:
    raise ValueError(
        f"{WHO}: each tensor must be a factor, a trained bias or part of a module to save, got "
        f"{key!r:.300}"
    )


def _check_modules(config: StoredConfig, contents: Contents) -> None:
    """Refuse a config whose lists and patterns speak of other modules than the keys."""
    check_parameters(config, contents.experts)
    adapted = contents.factors.keys() | contents.experts.keys()
    for field_name in ("rank_pattern", "alpha_pattern", "k_pattern"):
        strange = sorted(getattr(config, field_name).keys() - adapted)
        if strange:
            raise ValueError(
                f"{WHO}: {field_name} of the config must name modules that the tensors adapt, got "
                f"{some(strange)}"
            )
    if isinstance(config.target_modules, str):
        return
    matcher = names.NameMatcher(config.target_modules)
    strange = sorted(name for name in contents.factors if not matcher.matching(name))
    if strange:
        raise ValueError(
            f"{WHO}: target_modules of the config must name the modules that the tensors adapt, "
            f"got none for {some(strange)} (the two files do not belong together)"
        )


def _check_layer(
    config: StoredConfig, module: str, keys: Mapping[str, str], entries: Mapping[str, Entry]
) -> AdapterSpec:
    """The layer's hyperparameters, once its factors have the shapes that follow from them."""
    wanted = ["A", "B", "lora_A", "lora_B"] if config.hybrid_r else ["A", "B"]
    if set(keys) != set(wanted):
        raise ValueError(
            f"{WHO}: {module} must have {', '.join(FACTOR_SUFFIXES[name] for name in wanted)} "
            f"(hybrid_r={config.hybrid_r}), got "
            f"{', '.join(FACTOR_SUFFIXES[name] for name in FACTOR_SUFFIXES if name in keys)}"
        )
    shapes = {name: entries[key].shape for name, key in keys.items()}
    for name in ("A", "B"):
        if len(shapes[name]) != 3 or 0 in shapes[name]:
            raise ValueError(
                f"{WHO}: {keys[name]} must have three sizes from 1 up, got {list(shapes[name])}"
            )
    k_out, k_in = config.k_pattern.get(module, config.k)
    (a_in, n, _), (b_out, _, m) = shapes["A"], shapes["B"]
    in_features, out_features = a_in * n, b_out * m
    try:
        spec = make_spec(
            in_features,
            out_features,
            r=config.rank_pattern.get(module, config.r),
            k=(k_out, k_in),
            alpha=config.alpha_pattern.get(module, config.alpha),
            hybrid_r=config.hybrid_r,
            dropout=config.dropout,
            use_rslora=config.use_rslora,
            who=f"{WHO}: {module}",
        )
    except OverflowError:
        raise ValueError(f"{WHO}: {module} must have a finite scale") from None
    right = {
        "A": (k_in, in_features // k_in, k_out * spec.s),
        "B": (k_out, spec.r, out_features // k_out),
        "lora_A": (spec.hybrid_r, in_features),
        "lora_B": (out_features, spec.hybrid_r),
    }
    for name, shape in shapes.items():
        if shape != right[name]:
            raise ValueError(
                f"{WHO}: {keys[name]} must have shape {list(right[name])} by the config's rank "
                f"and grid (r={spec.r}, k_out={k_out}, k_in={k_in}, hybrid_r={spec.hybrid_r}), "
                f"got {list(shape)}"
            )
    return spec
