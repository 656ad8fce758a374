"""What the user of inject() should know although it is no error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from gralora.config import GraLoRAConfig
from gralora.injection import names
from gralora.injection.experts import fused_names
from gralora.injection.paths import is_inside
from gralora.injection.patterns import PatternTable
from gralora.injection.record import AdapterRecord
from gralora.injection.survey import Survey
from gralora.injection.targets import reads_weights_itself


def notices(found: Survey, record: AdapterRecord, who: str) -> tuple[str, ...]:
    """Texts about layers that were left out, and about entries that matched nothing.

    Args:
        found: the model before it is changed.
        record: what the adapter will consist of.
        who: opens the texts.

    """
    skipped = _skipped(found, record.config, record.saved_modules, who)
    return (*skipped, *_unmatched(found, record, who))


def _skipped(found: Survey, config: GraLoRAConfig, saved: tuple[str, ...], who: str) -> list[str]:
    if not names.is_all_linear(config):
        return []
    excluding = names.NameMatcher(config.exclude_modules)
    copied = frozenset(saved)
    skipped = [
        name
        for name, module in found.modules.items()
        if isinstance(module, nn.Linear)
        and reads_weights_itself(found, name)
        and not excluding.matching(name)
        and not is_inside(name, copied)
    ]
    if not skipped:
        return []
    return [
        f"{who}: target_modules='all-linear' leaves out {', '.join(skipped)}: "
        "torch.nn.MultiheadAttention reads their weights itself and would ignore an adapter"
    ]


def _aliases_of_parameters(found: Survey, record: AdapterRecord) -> Iterator[str]:
    for name in record.parameters:
        owner, _, attribute = name.rpartition(".")
        for alias in found.names[id(found.modules[owner])]:
            yield f"{alias}.{attribute}"


def _unmatched(found: Survey, record: AdapterRecord, who: str) -> list[str]:
    """Text that names the entries of a configuration without any effect."""
    config = record.config
    all_names = tuple(found.modules)
    parameters = tuple(_aliases_of_parameters(found, record))
    adapted = tuple(
        alias
        for name in record.targets
        if name not in record.parameters
        for alias in found.names[id(found.modules[name])]
    )

    def missing(entries: Iterable[str], matched: Iterable[str]) -> list[str]:
        present = set(matched)
        return [repr(entry) for entry in entries if entry not in present]

    unused: dict[str, list[str]] = {}
    if not isinstance(config.target_modules, str):
        targeted = names.NameMatcher(config.target_modules)
        matched = (entry for name in adapted for entry in targeted.matching(name))
        unused["target_modules"] = missing(targeted.entries, matched)
    of_parameters = names.NameMatcher(config.target_parameters)
    matched = (entry for name in parameters for entry in of_parameters.matching(name))
    unused["target_parameters"] = missing(of_parameters.entries, matched)
    excluding = names.NameMatcher(config.exclude_modules)
    candidates = (*all_names, *fused_names(found))
    matched = (entry for name in candidates for entry in excluding.matching(name))
    unused["exclude_modules"] = missing(excluding.entries, matched)
    saved = names.saved_entries(config)
    matched = (entry for name in all_names for entry in saved.of(name))
    unused["modules_to_save"] = missing(config.modules_to_save or (), matched)
    for setting in ("rank_pattern", "alpha_pattern", "k_pattern"):
        patterns = getattr(config, setting)
        table = PatternTable(patterns)
        matched = (key for name in record.targets for key in table.matching(name))
        unused[setting] = missing(patterns, matched)
    indices = {names.layer_index(config, name) for name in (*adapted, *parameters)}
    unused["layers_to_transform"] = [
        str(index) for index in names.wanted_layers(config) if index not in indices
    ]
    if config.layers_pattern and not names.wanted_layers(config):
        unused["layers_pattern"] = [f"{config.layers_pattern!r} without layers_to_transform"]
    parts = [f"{setting}: {', '.join(values)}" for setting, values in unused.items() if values]
    return [f"{who}: entries that matched nothing: {'; '.join(parts)}"] if parts else []
