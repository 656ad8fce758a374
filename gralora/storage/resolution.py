"""From a stored config and the keys of its tensors to the configuration of one model.

The keys decide which modules are adapted. A list of endings in the config is compared with them;
a regular expression is not, since it may be hostile and says nothing that the keys do not say.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

from torch import nn

from gralora.config import GraLoRAConfig
from gralora.injection import names
from gralora.injection.experts import has_parameter
from gralora.injection.listing import some
from gralora.injection.paths import Suffixes, is_inside
from gralora.injection.survey import Survey, survey
from gralora.storage.config_values import MAX_NAME_LENGTH, WHO
from gralora.storage.naming import list_or_expression
from gralora.storage.stored_config import StoredConfig
from gralora.storage.tensor_names import PREFIX, adapted_modules

T = TypeVar("T")

# A module's name at its longest, and what comes before and after it.
MAX_KEY_LENGTH = MAX_NAME_LENGTH + 200

_PLAIN_WORD = re.compile(r"[A-Za-z0-9_]+")


def resolve(model: nn.Module, stored: StoredConfig, keys: Collection[str]) -> GraLoRAConfig:
    """The configuration that makes `model` the adapter's.

    Args:
        model: unwrapped, bare or with other adapters.
        stored: the file's config.
        keys: of the file's tensors.

    Returns:
        A configuration that names exactly the modules and parameters of the keys, in full.

    Raises:
        ValueError: keys that are not PEFT's, no adapted module, modules that the model lacks, or a
            list of targets that disagrees with the keys.

    """
    check_keys(keys)
    adapted = adapted_modules(iter(keys))
    if not adapted:
        raise ValueError(f"{WHO}: the file must hold factors of an adapter, got {some(keys)}")
    found = survey(model)
    _check_parameters(adapted, stored)
    modules = adapted - set(stored.target_parameters)
    _check_known(modules, adapted, found, stored)
    saved = _saved_names(stored, found)
    if not isinstance(stored.target_modules, str):
        _check_list(modules, stored, found, saved)
    k_out, k_in = stored.k
    ranks = _for_each(adapted, stored.rank_pattern, stored.r, "rank_pattern")
    alphas = _for_each(adapted, stored.alpha_pattern, stored.alpha, "alpha_pattern")
    grids = _for_each(adapted, stored.k_pattern, stored.k, "k_pattern")
    try:
        return GraLoRAConfig(
            r=stored.r,
            k=k_in if k_in == k_out else stored.k,
            alpha=stored.alpha,
            target_modules=list_or_expression(modules, found.modules),
            hybrid_r=stored.hybrid_r,
            dropout=stored.dropout,
            use_rslora=stored.use_rslora,
            bias=stored.bias,
            modules_to_save=saved or None,
            base_model_name_or_path=stored.base_model_name_or_path,
            task_type=stored.task_type,
            rank_pattern=ranks,
            alpha_pattern=alphas,
            k_pattern=grids,
            init_weights=stored.init_weights,
            target_parameters=stored.target_parameters or None,
        )
    except ValueError as error:
        raise ValueError(f"{WHO}: the config must fit the method, got {error}") from None


def check_keys(keys: Collection[str]) -> None:
    """Raise ValueError for a key that no adapter has, or one longer than any module's."""
    for key in keys:
        if len(key) > MAX_KEY_LENGTH:
            raise ValueError(
                f"{WHO}: the tensors' keys must have at most {MAX_KEY_LENGTH} characters, got one "
                f"of {len(key)}"
            )
        if not key.startswith(PREFIX) or not key.isprintable():
            raise ValueError(
                f"{WHO}: the tensors' keys must be printable and begin with {PREFIX!r}, got "
                f"{key!r:.300}"
            )


def _check_parameters(adapted: set[str], stored: StoredConfig) -> None:
    lacking = [name for name in stored.target_parameters if name not in adapted]
    if lacking:
        raise ValueError(
            f"{WHO}: target_parameters of the config must name parameters that the tensors adapt, "
            f"got {some(lacking)}"
        )


def _check_known(modules: set[str], adapted: set[str], found: Survey, stored: StoredConfig) -> None:
    lacking = modules - found.modules.keys()
    lacking |= {name for name in adapted - modules if not has_parameter(found, name)}
    unknown = sorted(lacking)
    if not unknown:
        return
    base = stored.base_model_name_or_path
    origin = f" of base model {base!r:.200}" if base else ""
    raise ValueError(
        f"{WHO}: the adapter{origin} must fit the model, got {len(unknown)} of {len(adapted)} "
        f"adapted modules that the model does not have: {some(unknown)} (it has "
        f"{some(found.linear_names())})"
    )


def _saved_names(stored: StoredConfig, found: Survey) -> tuple[str, ...]:
    """First names of the modules that the config saves as a whole, in the model's order."""
    entries = Suffixes(stored.modules_to_save)
    chosen = {found.first_name(name) for name in found.modules if entries.of(name)}
    return tuple(name for name in found.modules if name in chosen)


def _check_list(
    adapted: set[str], stored: StoredConfig, found: Survey, saved: tuple[str, ...]
) -> None:
    """Refuse tensors and a list of targets that select different layers of the model."""
    targeted, copied = names.NameMatcher(stored.target_modules), frozenset(saved)
    asked = {
        name for name in found.modules if targeted.matching(name) and not is_inside(name, copied)
    }
    first = {found.first_name(name) for name in asked}
    strange = sorted(name for name in adapted if found.first_name(name) not in first)
    if strange:
        raise ValueError(
            f"{WHO}: target_modules of the config must name the modules that the tensors adapt, "
            f"got none for {some(strange)} (the two files do not belong together)"
        )
    # Which layers a regular expression means is not asked.
    if not all(_PLAIN_WORD.fullmatch(pattern) for pattern in stored.layers_pattern):
        return
    rule = GraLoRAConfig(
        layers_to_transform=stored.layers_to_transform, layers_pattern=stored.layers_pattern
    )
    covered = {found.first_name(name) for name in adapted}
    lacking = sorted(
        name
        for name in asked & set(found.linear_names())
        if found.first_name(name) not in covered and names.is_in_wanted_layers(rule, name)
    )
    if lacking:
        raise ValueError(
            f"{WHO}: the tensors must cover what target_modules names in the model, got none for "
            f"{some(lacking)} (the adapter is another model's, or incomplete)"
        )


def _for_each(adapted: set[str], pattern: Mapping[str, T], default: T, field: str) -> dict[str, T]:
    """A value for every module by its full name, so that no key is read as an expression."""
    if not pattern:
        return {}
    strange = sorted(pattern.keys() - adapted)
    if strange:
        raise ValueError(
            f"{WHO}: {field} of the config must name modules that the tensors adapt, got "
            f"{some(strange)}"
        )
    return {name: pattern.get(name, default) for name in sorted(adapted)}
