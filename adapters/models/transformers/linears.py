"""Linear layers on the CPU, by oneDNN with weights in the order that it likes best: brought into it once, at the start,
and not by `torch.nn.functional.linear` in every pass, which for few rows also falls back on slower kernels.

Layers that are given the same input (queries, keys and values; an MLP's gate and its first half) are computed as one:
a small layer takes longer to begin than to compute. Which do is seen in a trial pass, so that nothing need be known of
a model's parts; and a layer that is given something else, after all, computes that.

The operators are those that torch's own compiler (Inductor) puts in the place of linear layers of a frozen model. They
have no public name, so whether they are there, and right, is found out by trying (see `check`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class _Packed:
    """What some linear layers compute of one input."""

    def __init__(self, layers: Sequence[nn.Linear], *, copy: bool) -> None:
        weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
        self.weight: Tensor = weight.detach()
        if copy:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)
        self.bias: Tensor | None = None
        if layers[0].bias is not None:
            self.bias = torch.cat([layer.bias for layer in layers]).detach()
        self.sizes = [layer.out_features for layer in layers]
        self._linear = torch.ops.mkldnn._linear_pointwise.default
        self._input: Tensor | None = None
        self._outputs: tuple[Tensor, ...] = ()

    def all(self, rows: Tensor) -> Tensor:
        output: Tensor = self._linear(rows, self.weight, self.bias, "none", [], "")
        return output

    def part(self, rows: Tensor, index: int) -> Tensor:
        """The output of one of the layers; those of the others are kept until the last one's is asked for."""
        if rows is not self._input:
            self._input, self._outputs = rows, self.all(rows).split_with_sizes(self.sizes, -1)
        output = self._outputs[index]
        if index == len(self.sizes) - 1:
            self._input, self._outputs = None, ()
        return output

    def dense(self) -> tuple[Tensor, ...]:
        """The layers' weights as they were."""
        weight = self.weight.to_dense() if self.weight.is_mkldnn else self.weight
        return weight.split_with_sizes(self.sizes)


class _Whole(nn.Module):
    """Stands in for a linear layer."""

    def __init__(self, packed: _Packed, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._packed = packed

    def forward(self, rows: Tensor) -> Tensor:
        return self._packed.all(rows)


class _Part(_Whole):
    """Stands in for one of several."""

    def __init__(self, packed: _Packed, layer: nn.Linear, index: int) -> None:
        super().__init__(packed, layer)
        self._index = index

    def forward(self, rows: Tensor) -> Tensor:
        return self._packed.part(rows, self._index)


class _Place(NamedTuple):
    parent: nn.Module
    name: str
    layer: nn.Linear


class _Replaced(NamedTuple):
    place: _Place
    packed: _Packed
    part: int


class PackedLinears:
    """Replaces the linear layers of a model, and puts them back.

    `trial` makes the model compute something. Weights that the model uses elsewhere, too (an output layer that is also
    the embedding), stay as they are: oneDNN takes them so. The others take memory of the process from then on, where
    they were pages of a mapped file before, which are the system's to drop.

    Raises what torch raises where the operators aren't there, or not for this type of number; the model is as it was.
    """

    def __init__(self, model: nn.Module, trial: Callable[[], object], *, fuse: bool = True) -> None:
        self._replaced: list[_Replaced] = []
        places = _places(model)
        shared = _shared(model)
        try:
            for group in _groups(places, trial, shared) if fuse else [[place] for place in places]:
                self._replace(group, copy=group[0].layer.weight not in shared)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Make the model what it was, to the last bit."""
        while self._replaced:
            place, packed, part = self._replaced.pop()
            if packed.weight.is_mkldnn:
                place.layer.weight = nn.Parameter(packed.dense()[part].contiguous(), requires_grad=False)
            setattr(place.parent, place.name, place.layer)

    def _replace(self, group: Sequence[_Place], *, copy: bool) -> None:
        packed = _Packed([place.layer for place in group], copy=copy)
        for index, place in enumerate(group):
            stand_in = _Whole(packed, place.layer) if len(group) == 1 else _Part(packed, place.layer, index)
            setattr(place.parent, place.name, stand_in)
            self._replaced.append(_Replaced(place, packed, index))
            if copy:  # of two copies one is enough
                place.layer.weight = nn.Parameter(packed.weight.new_empty(0, layout=torch.strided), requires_grad=False)


def _places(model: nn.Module) -> list[_Place]:
    """Where a model's linear layers are; none that has a class of its own, or a second place."""
    found: dict[nn.Linear, list[_Place]] = {}
    for parent in model.modules():
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear:
                found.setdefault(layer, []).append(_Place(parent, name, layer))
    return [places[0] for places in found.values() if len(places) == 1]


def _shared(model: nn.Module) -> set[nn.Parameter]:
    """The weights that several modules use."""
    users: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users[parameter] = users.get(parameter, 0) + 1
    return {parameter for parameter, count in users.items() if count > 1}


def _groups(places: Sequence[_Place], trial: Callable[[], object], shared: set[nn.Parameter]) -> Iterator[list[_Place]]:
    """The layers of one parent that are given the same input one behind the other, once in a pass; the others alone."""
    calls: list[tuple[_Place, Tensor]] = []  # (holds the inputs: an object's id would be given again)
    hooks = [
        place.layer.register_forward_pre_hook(lambda _, inputs, place=place: calls.append((place, inputs[0])))
        for place in places
    ]
    try:
        trial()
    finally:
        for hook in hooks:
            hook.remove()
    times = Counter(place.layer for place, _ in calls)
    alike: dict[nn.Linear, list[_Place]] = {}
    before: tuple[_Place, Tensor] | None = None
    for place, rows in calls:
        layer = place.layer
        if times[layer] == 1 and layer.weight not in shared:
            if before is not None and before[1] is rows and _fit(before[0], place):
                alike[layer] = alike[before[0].layer]
                alike[layer].append(place)
            else:
                alike[layer] = [place]
            before = place, rows
        else:
            before = None
    calls.clear()
    done: set[nn.Linear] = set()
    for place in places:
        if place.layer not in done:
            group = alike.get(place.layer, [place])
            done.update(each.layer for each in group)
            yield group


def _fit(one: _Place, other: _Place) -> bool:
    return (
        one.parent is other.parent
        and (one.layer.bias is None) == (other.layer.bias is None)
        and one.layer.weight.dtype == other.layer.weight.dtype
    )
