"""A module that adapters train as a whole: the original, and one copy for each adapter."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn


class SavedModule(nn.Module):
    """Stands in for a module; calls and attributes go to the copy of the active adapter.

    While no adapter that has a copy is active, they go to the original, which stays frozen. The
    attribute names are those of PEFT's ``ModulesToSaveWrapper``.

    Args:
        original_module: the module that is replaced.

    Attributes:
        original_module: as the base model has it, frozen. Its own keys in a state dict
            (``score.weight``) are accepted on loading.
        modules_to_save: the trained copy of each adapter, by adapter name.

    """

    original_module: nn.Module
    modules_to_save: nn.ModuleDict

    def __init__(self, original_module: nn.Module) -> None:
        super().__init__()
        self.original_module = original_module
        self.modules_to_save = nn.ModuleDict()
        self._active: str | None = None
        self._enabled = True
        original_module.requires_grad_(False)
        self.training = original_module.training

    @property
    def active_adapter(self) -> str | None:
        """Name of the adapter whose copy acts while adapters are enabled."""
        return self._active

    @property
    def active_module(self) -> nn.Module:
        """The copy of the active adapter, or the original."""
        # Not self.modules_to_save: __getattr__ below asks for this module while looking it up.
        modules = self.__dict__["_modules"]
        active = self.__dict__["_active"]
        if active is None or not self.__dict__["_enabled"]:
            return modules["original_module"]  # type: ignore[no-any-return]
        return modules["modules_to_save"]._modules[active]  # type: ignore[no-any-return]

    @property
    def _tied_weights_keys(self) -> dict[str, str]:
        """Keys that transformers may leave out of a file where tensors are tied."""
        return {name: name for name, _ in self.named_parameters(remove_duplicate=False)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the active module."""
        return self.active_module(*args, **kwargs)

    def set_adapter(self, names: Sequence[str]) -> None:
        """Let the one of `names` that has a copy here act and train, and no other."""
        present = [name for name in names if name in self.modules_to_save]
        self._active = present[0] if present else None
        self._set_trainable()

    def enable_adapters(self, enabled: bool) -> None:
        """Turn the copies on, or off: the original acts then and nothing trains."""
        self._enabled = enabled
        self._set_trainable()

    def add_copy(self, name: str, module: nn.Module) -> None:
        """Take over the copy of a new adapter, inactive."""
        self.modules_to_save[name] = module.requires_grad_(False)

    def delete_adapter(self, name: str) -> None:
        """Drop the copy of an adapter; where it acted, the original does from now on."""
        if self._active == name:
            self._active = None
        del self.modules_to_save[name]

    def _set_trainable(self) -> None:
        # A parameter may belong to the copies of one adapter only, but twice among them.
        for name, module in self.modules_to_save.items():
            for parameter in module.parameters():
                if parameter.is_floating_point():
                    parameter.requires_grad_(self._enabled and name == self._active)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Before __init__ or while being unpickled there is nothing to ask.
            if "_enabled" not in self.__dict__ or "_modules" not in self.__dict__:
                raise
        return getattr(self.active_module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # transformers ties weights by assigning them; a parameter set here would be a third one.
        if "_enabled" in self.__dict__:
            active = self.active_module
            if name in active._parameters or name in active._buffers:
                setattr(active, name, value)
                return
        super().__setattr__(name, value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        own = (f"{prefix}original_module.", f"{prefix}modules_to_save.")
        for name in self.original_module.state_dict():
            given, wanted = prefix + name, f"{prefix}original_module.{name}"
            if given in state_dict and wanted not in state_dict and not given.startswith(own):
                state_dict[wanted] = state_dict.pop(given)
        super()._load_from_state_dict(state_dict, prefix, *args)


def copy_modules(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Copies of `modules` in which parameters that they share are shared among the copies."""
    memo: dict[int, Any] = {}
    return [copy.deepcopy(module, memo) for module in modules]
