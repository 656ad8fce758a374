"""Sibling layers that read the same input, such as q, k and v, computed together.

A layer does not know the module that calls it, so siblings meet in a :class:`SharedInput`. The
first of them computes the outputs of all, by one operator, and the others find theirs when they are
called with the very same tensor. Where they are not, the siblings are observed: those that do read
one tensor, as k and v of a cross attention, are computed together from then on, in the order in
which they are called.

    TOGETHER --(outputs that nobody took)--> OBSERVING, the third time APART for good
    OBSERVING --(all siblings read one tensor, or some did and two rounds are over)--> TOGETHER

A mistake costs time alone: :mod:`gralora.nn.early_outputs` hands out what computing now would give
too, and otherwise the layer computes by itself. To begin together, rather than by observing, lets
the first pass of a model compute what each later one does, to the last bit.

Gradient checkpointing without reentry compares what a forward pass and its repetition save, so that
both have to compute in the same way. Therefore the state stays while a pass may still be repeated,
and nothing is concluded from what happens in a backward pass.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from enum import Enum
from threading import get_ident
from typing import Any, NamedTuple

from torch import Tensor, nn

from gralora import functional
from gralora.nn.early_outputs import (
    EarlyOutputs,
    Mode,
    Operands,
    Sibling,
    calling_mode,
    count_changes,
    is_in_backward,
)

# What a layer keeps of its group.
_GROUP, _PLACE = "_shared_input", "_shared_input_place"

# How often outputs may have been computed in vain.
_PATIENCE = 3


class State(Enum):
    """What a group does when a member is called."""

    OBSERVING = "looks who shares an input"
    TOGETHER = "computes together"
    APART = "lets each compute by itself"


class _Sighting(NamedTuple):
    """A call that was observed; it holds neither layers nor tensors."""

    thread: int
    x: weakref.ref[Tensor]
    version: int
    # Who was called with this tensor, the layer of this call last.
    readers: tuple[weakref.ref[Any], ...]


class _Thread(threading.local):
    """The group of a thread that has outputs waiting: one alone, so that few are left over."""

    group: weakref.ref[SharedInput] | None = None


_thread = _Thread()


class SharedInput:
    """What siblings have in common; no module, so that names and state dicts stay as they are.

    Its members hold it, and it holds them weakly, since they alone are what a model has. Members
    that are copied, or unpickled, at once have one of their own.

    Args:
        size: how many siblings there are, two or three.

    Attributes:
        size: see above.
        state: what it does now.

    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.state = State.OBSERVING
        # Siblings by their place, until all are there.
        self._joined: dict[int, weakref.ref[Any]] = {}
        # Those that share an input; the first one leads.
        self._members: tuple[weakref.ref[Any], ...] = ()
        # What the state becomes as soon as no pass may be repeated.
        self._due = self.state
        self._in_vain = 0
        # The last call of each sibling, and what may be concluded so far, after how many calls.
        self._sightings: tuple[_Sighting, ...] = ()
        self._candidates: tuple[weakref.ref[Any], ...] = ()
        self._observed = 0
        self._repeatable: tuple[weakref.ref[Any], ...] = ()
        # By thread, so that threads that run one model do not meet.
        self._early: dict[int, EarlyOutputs] = {}
        self._reference = weakref.ref(self)

    def __reduce__(self) -> tuple[type[SharedInput], tuple[int]]:
        """Copy and pickle the size alone; members that are copied at once join the copy."""
        return SharedInput, (self.size,)

    def join(self, layer: nn.Module) -> None:
        """Take a sibling in; with the last one they are computed together.

        Args:
            layer: keeps its place, in the order of the calls, itself. One that comes late, as a
                shallow copy does, changes nothing.

        """
        if len(self._joined) == self.size:
            return
        self._joined[layer.__dict__[_PLACE]] = weakref.ref(layer)
        if len(self._joined) == self.size:
            self._members = tuple(self._joined[place] for place in range(self.size))
            self.state = self._due = State.TOGETHER

    def output(self, layer: Sibling, x: Tensor) -> Tensor | None:
        """What a member makes of an input, or None where it has to compute by itself.

        Args:
            layer: the member that is called.
            x: ``[..., N]``, its input.

        Returns:
            ``[..., M]``, to be handed on as it is.

        """
        if self._early:
            thread = get_ident()
            early = self._early.get(thread)
            if early is not None and id(layer) in early.waiting:
                y = early.take(layer, x)
                if y is None:
                    self._abandon(thread)
                elif not early.waiting:
                    del self._early[thread]
                    _thread.group = None
                return y
        if self.state is State.APART or (self._members and self._members[0]() is not layer):
            return None
        mode = calling_mode(x)
        if mode is None:
            return None
        in_backward = is_in_backward()
        if not in_backward:
            if self._due is not self.state:
                self._settle()
            if mode[-1] is not None:
                self._remember_pass(mode[-1])
            if not self._members:
                self._observe(layer, x)
        return self._compute(x, mode, in_backward) if self.state is State.TOGETHER else None

    def _compute(self, x: Tensor, mode: Mode, in_backward: bool) -> Tensor | None:
        """The leader's output; those of the others wait for them."""
        members: list[Sibling] = []
        operands: list[Operands] = []
        for reference in self._members:
            member: Any = reference()
            found: Operands | None = None if member is None else member._shared_operands()
            if found is None:
                return None
            members.append(member)
            operands.append(found)
        if not _fit(operands, x, mode):
            return None
        try:
            changes = list(map(count_changes, operands))
        except RuntimeError:
            return None
        _abandon_earlier()
        weights, biases, A, B, specs = zip(*operands, strict=True)
        outputs = functional.gralora_linear_group(
            x, weights, biases, A, B, scaling=specs[0].scaling
        )
        early = EarlyOutputs(x, mode, in_backward)
        for i in range(1, len(members)):
            early.waiting[id(members[i])] = operands[i], changes[i], outputs[i]
        self._early[get_ident()] = early
        _thread.group = self._reference
        return outputs[0]

    def _abandon(self, thread: int) -> None:
        """Let outputs go that nobody took, and conclude what that says of the siblings."""
        early = self._early.pop(thread, None)
        # Checkpointing ends a repeated pass as soon as it has what it needs.
        if early is None or early.in_backward or self._due is not State.TOGETHER:
            return
        self._in_vain += 1
        self._due = State.APART if self._in_vain == _PATIENCE else State.OBSERVING

    def _settle(self) -> None:
        """Become what is due, unless a pass may be repeated that was computed as it is now."""
        if any(reference() is not None for reference in self._repeatable):
            return
        self.state = self._due
        if self.state is not State.TOGETHER:
            self._members = ()

    def _remember_pass(self, now: Any) -> None:
        """Note a forward pass that checkpointing may repeat."""
        if self._repeatable and self._repeatable[-1]() is now:
            return
        alive = tuple(reference for reference in self._repeatable if reference() is not None)
        self._repeatable = (*alive, weakref.ref(now))

    def _observe(self, layer: Any, x: Tensor) -> None:
        """Note a call, and conclude who shares an input once that is known."""
        # The replicas of nn.DataParallel have this very group, and die after the call.
        if "_is_replica" in layer.__dict__:
            return
        thread = get_ident()
        readers: tuple[weakref.ref[Any], ...] = ()
        others = []
        for sighting in self._sightings:
            if sighting.thread == thread and sighting.readers[-1]() is not layer:
                others.append(sighting)
                if sighting.x() is x and sighting.version == x._version:
                    readers = sighting.readers
        readers = (*(reader for reader in readers if reader() is not layer), weakref.ref(layer))
        self._sightings = (*others, _Sighting(thread, weakref.ref(x), x._version, readers))
        self._observed += 1
        if len(readers) > max(1, len(self._candidates)):
            self._candidates = readers
        enough = len(readers) == self.size or self._observed >= 2 * self.size
        if enough and self._candidates:
            self._members, self._due = self._candidates, State.TOGETHER
            self._sightings, self._candidates, self._observed = (), (), 0


def _fit(operands: Sequence[Operands], x: Tensor, mode: Mode) -> bool:
    """Whether the operator takes the operands of all layers at once, with this input."""
    weight, _, A, _, spec = operands[0]
    dtype, device, factors = weight.dtype, weight.device, A.dtype
    # Autocast's dtype stands second.
    if device != x.device or (dtype is not x.dtype and mode[1] is None):
        return False
    r, k_in, scaling = spec.r, spec.k_in, spec.scaling
    for weight, _, A, B, other in operands:
        if (
            A.dtype is not factors
            or B.dtype is not factors
            or weight.dtype is not dtype
            or weight.device != device
            or other.r != r
            or other.k_in != k_in
            or other.scaling != scaling
        ):
            return False
    return True


def _abandon_earlier() -> None:
    """Let go what this thread left over, of whichever group that was."""
    group = None if _thread.group is None else _thread.group()
    _thread.group = None
    if group is not None:
        group._abandon(get_ident())


def share(layers: Sequence[nn.Module]) -> None:
    """Let layers be computed together from now on, where they share an input.

    Args:
        layers: two or three, in the order in which they are called; each leaves the group that it
            was in.

    """
    group = SharedInput(len(layers))
    for place, layer in enumerate(layers):
        layer.__dict__ |= {_GROUP: group, _PLACE: place}
        group.join(layer)


def leave(layer: nn.Module) -> None:
    """Let a layer compute by itself from now on."""
    for key in (_GROUP, _PLACE):
        layer.__dict__.pop(key, None)
