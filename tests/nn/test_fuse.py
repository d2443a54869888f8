"""fuse(): the same function, gradients and state_dict, with fewer modules doing work."""

from __future__ import annotations

import copy
import gc
import itertools
import operator
import pickle
import random
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

import fastgan
from fastgan.nn._fuse.interior import interior
from fastgan.nn.instance_norm import _InstanceNormAct
from tests.nn.models import PatchDiscriminator, ResnetGenerator, unet_generator


def report_of(model: nn.Module) -> dict[str, str]:
    return {fusion.name: fusion.what for fusion in fastgan.fuse(model).fused}


def assert_same_function(plain: nn.Module, fused: nn.Module, x: Tensor) -> None:
    """Outputs, gradients and second-order gradients agree in float64, from the same state_dict."""
    plain, fused, x = plain.double(), fused.double(), x.double()
    assert list(plain.state_dict()) == list(fused.state_dict())
    results = []
    for model in (plain, fused):
        leaf = x.clone().requires_grad_()
        parameters = [p for _, p in model.named_parameters()]
        y = model(leaf * 1.0)  # in-place activations must not meet a leaf
        first = torch.autograd.grad(y.square().sum(), [leaf, *parameters], create_graph=True, materialize_grads=True)
        second = torch.autograd.grad(first[0].square().sum(), [leaf, *parameters], materialize_grads=True)
        results.append((y, *first, *second))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-8, atol=1e-9)


def check(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, dict[str, str]]:
    plain = make()
    fused = copy.deepcopy(plain)
    what = report_of(fused)
    assert_same_function(plain, fused, torch.randn(shape) + 0.5)
    return fused, what


@pytest.mark.parametrize("affine", [False, True])
def test_resnet_generator(affine: bool) -> None:
    fused, what = check(lambda: ResnetGenerator(affine=affine), (2, 3, 16, 16))
    assert what == {
        "model.2": "norm + relu",
        "model.5": "norm + relu + reflect_pad(1)",
        "model.7.conv_block.2": "norm + relu + reflect_pad(1)",
        "model.7.conv_block.6": "norm + residual + reflect_pad(1)",
        "model.8.conv_block.2": "norm + relu + reflect_pad(1)",
        "model.8.conv_block.6": "norm + residual + reflect_pad(1)",
        "model.9.conv_block.2": "norm + relu + reflect_pad(1)",
        "model.9.conv_block.6": "norm + residual",
        "model.11": "norm + relu + reflect_pad(3)",
    }
    # Two paddings are left: those of the input and none of the others.
    assert sum(isinstance(m, nn.ReflectionPad2d) for m in fused.modules()) == 1


def test_unet_generator_takes_the_in_place_activation_of_the_next_block() -> None:
    _, what = check(unet_generator, (2, 3, 32, 32))
    assert what["model.1.model.2"] == "norm + leaky_relu"
    assert what["model.1.model.6"] == "norm"


def test_patch_discriminator() -> None:
    _, what = check(PatchDiscriminator, (2, 3, 32, 32))
    assert what == {"model.3": "norm + leaky_relu", "model.6": "norm + leaky_relu"}


class UnetLike(nn.Module):
    """A skip connection whose activation is not in place: the skip must see the value before it."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        inner = nn.Sequential(nn.LeakyReLU(0.2, inplace), nn.Conv2d(4, 4, 3, padding=1))

        class Skip(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = inner

            def forward(self, x: Tensor) -> Tensor:
                return torch.cat([x, self.inner(x)], 1)

        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), Skip())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize(("inplace", "expected"), [(True, "norm + leaky_relu"), (False, "norm")])
def test_skip_connections_respect_in_place(inplace: bool, expected: str) -> None:
    _, what = check(lambda: UnetLike(inplace), (1, 3, 9, 7))
    assert what == {"layers.1": expected}


class Attributes(nn.Module):
    """Norm and activations held in attributes, a shared ReLU, a residual computed after the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.InstanceNorm2d(4, affine=True)
        self.shortcut = nn.Conv2d(3, 4, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


def test_attributes_are_traced() -> None:
    fused, what = check(Attributes, (2, 3, 7, 5))
    assert what == {"norm1": "norm + relu", "norm2": "norm + residual + relu"}
    assert isinstance(fused, Attributes)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)
        self.norm2 = nn.InstanceNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = nnf.pad(nnf.leaky_relu(self.norm(self.conv(x)), 0.1), (2, 2, 2, 2), mode="reflect")
        return torch.relu(x + self.norm2(x))


def test_functional_calls_are_taken_over() -> None:
    _, what = check(Functional, (2, 3, 9, 8))
    assert what == {"norm": "norm + leaky_relu + reflect_pad(2)", "norm2": "norm + residual + relu"}


def test_graph_module() -> None:
    plain = fx.symbolic_trace(Attributes())
    fused = fx.symbolic_trace(copy.deepcopy(plain))
    assert report_of(fused) == {"norm1": "norm + relu", "norm2": "norm + residual + relu"}
    assert_same_function(plain, fused, torch.randn(2, 3, 7, 5))


@pytest.mark.parametrize("dims", [1, 3])
def test_other_dimensions(dims: int) -> None:
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    norm = {1: nn.InstanceNorm1d, 3: nn.InstanceNorm3d}[dims]
    pad = {1: nn.ReflectionPad1d, 3: nn.ReflectionPad3d}[dims]
    _, what = check(
        lambda: nn.Sequential(conv(2, 3, 3), norm(3, affine=True), nn.ReLU(), pad(1), conv(3, 2, 3)),
        (2, 2, *(6,) * dims),
    )
    assert what == {"1": "norm + relu + reflect_pad(1)"}


def test_nested_sequential_ends_in_a_norm() -> None:
    make = lambda: nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)), nn.LeakyReLU(0.3))
    _, what = check(make, (2, 3, 6, 6))
    assert what == {"0.1": "norm + leaky_relu"}


def test_module_list() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(3, 3, 3), nn.InstanceNorm2d(3), nn.ReLU()])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    _, what = check(Chain, (2, 3, 6, 6))
    assert what == {"layers.1": "norm + relu"}


# --- what must not be fused ---------------------------------------------------------------------------------------


def test_value_seen_elsewhere() -> None:
    class Tapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.relu = nn.InstanceNorm2d(3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(x)
            return self.relu(h) + h

    _, what = check(Tapped, (2, 3, 5, 5))
    assert what == {"norm": "norm"}


def test_unequal_or_other_padding() -> None:
    _, what = check(
        lambda: nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU(), nn.ReflectionPad2d((1, 1, 2, 2))), (1, 3, 5, 5)
    )
    assert what == {"0": "norm + relu"}
    _, what = check(lambda: nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU(), nn.ReplicationPad2d(1)), (1, 3, 5, 5))
    assert what == {"0": "norm + relu"}


def test_in_place_addition_into_the_other_summand() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            h = x * 1.0
            kept = h
            h += self.norm(x)
            return h * kept

    _, what = check(Writes, (2, 3, 5, 5))
    assert what == {"norm": "norm"}


def test_norm_is_not_moved_past_a_change_of_its_input() -> None:
    class Moves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.relu = nn.InstanceNorm2d(3), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(x)
            return h + self.relu(x)

    model = Moves()
    assert report_of(model) == {"norm": "norm"}
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(model(x.clone()), Moves()(x))


def test_norm_is_not_moved_past_a_change_of_what_the_residual_shares_with_it() -> None:
    class Moves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.norm(x)
            x.mul_(-2)
            return h + x

    model = Moves()
    assert report_of(model) == {"norm": "norm"}
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(model(x.clone()), Moves()(x))


@pytest.mark.parametrize("how", ["iadd", "method", "function", "argument", "keyword", "module"])
def test_residual_that_is_written_into_afterwards(how: str) -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.elu, self.how = nn.InstanceNorm2d(3), nn.Sequential(nn.ELU(inplace=True)), how

        def forward(self, x: Tensor) -> Tensor:
            r = x * 3
            y = nnf.relu(self.norm(x) + r)
            if self.how == "iadd":
                r += 1
            elif self.how == "method":
                r.mul_(2)
            elif self.how == "function":
                r = nnf.leaky_relu_(r)
            elif self.how == "argument":
                r = nnf.relu(r, True)
            elif self.how == "keyword":
                r = nnf.elu(r, inplace=True)
            else:
                r = self.elu(r)
            return y * r

    _, what = check(Writes, (2, 3, 5, 5))
    assert what == {"norm": "norm + residual"}


def test_first_import_of_a_module_while_a_forward_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "imported_late.py").write_text("def count():\n    print(1)\n    return 2\n\nWIDTH = count()\n")
    monkeypatch.syspath_prepend(tmp_path)

    class Imports(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            import imported_late  # type: ignore[import-not-found]

            return nnf.relu(self.norm(x)) * imported_late.WIDTH

    assert report_of(Imports()) == {"norm": "norm + relu"}


def test_residual_that_is_only_read_afterwards() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.InstanceNorm2d(3), nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True))

        def forward(self, x: Tensor) -> Tensor:
            y = nnf.relu(self.norm(x) + x)
            return torch.cat([y, self.conv(x), nnf.relu(x)], 1) + x.mean(1, keepdim=True)

    _, what = check(Reads, (2, 3, 5, 5))
    assert what == {"norm": "norm + residual + relu"}


def test_module_called_or_registered_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.relu = nn.InstanceNorm2d(3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.norm(x)) + self.norm(x + 1)

    _, what = check(Twice, (2, 3, 5, 5))
    assert what == {"norm": "norm"}
    assert fastgan.fuse(Twice()).left == [("norm", "what follows it: it is called more than once")]

    shared = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.InstanceNorm2d(3, affine=True))
    _, what = check(lambda: nn.Sequential(shared, nn.ReLU(), shared), (2, 3, 5, 5))
    assert what == {"0.1": "norm"}
    left = fastgan.fuse(nn.Sequential(shared, nn.ReLU(), shared)).left
    assert left == [("0", "what follows it: it is registered more than once")]


def test_norm_and_activation_that_are_attributes_besides() -> None:
    class ConvNormAct(nn.Module):
        """As in nnU-Net."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv3d(2, 2, 3, padding=1), nn.InstanceNorm3d(2, affine=True)
            self.act = nn.LeakyReLU(inplace=True)
            self.all_modules = nn.Sequential(self.conv, self.norm, self.act)

        def forward(self, x: Tensor) -> Tensor:
            return self.all_modules(x)

    fused, what = check(ConvNormAct, (1, 2, 4, 5, 4))
    assert what == {"norm": "norm", "all_modules.1": "norm + leaky_relu"}
    assert fused.norm.weight is fused.all_modules[1].weight  # type: ignore[index, union-attr]


def test_activation_that_is_called_again() -> None:
    class PreActivated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.conv = nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.act(self.conv(self.act(x)))

        def decode(self, x: Tensor) -> Tensor:
            return self.conv(self.act(x))

    make = lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3), PreActivated())
    plain = make()
    fused = copy.deepcopy(plain)
    assert report_of(fused) == {"1": "norm + leaky_relu"}
    assert_same_function(plain, fused, torch.randn(2, 3, 6, 5))
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(fused[2].decode(x * 1), plain[2].decode(x * 1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(3, 3, 3), nn.InstanceNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def test_what_a_module_begins_with_is_taken_from_its_only_call() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(3, 3, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.body(self.body(x))

    _, what = check(lambda: nn.Sequential(nn.InstanceNorm2d(3), Again()), (2, 3, 6, 5))
    assert what == {"0": "norm"}

    class Branches(Residual):
        def branch(self, x: Tensor) -> Tensor:
            return self.body(x)

    plain = nn.Sequential(nn.InstanceNorm2d(3), Branches())
    fused = copy.deepcopy(plain)
    assert report_of(fused) == {"0": "norm", "1.body.2": "norm + residual"}
    assert_same_function(plain, fused, torch.randn(2, 3, 6, 5))
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(fused[1].branch(x), plain[1].branch(x))


class Activated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.conv = nn.LeakyReLU(0.2, inplace=True), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.act(x))


class HoldsActivated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Activated()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_what_a_module_begins_with_is_not_taken_from_its_other_calls() -> None:
    class Again(HoldsActivated):
        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x))

    class Also(HoldsActivated):
        def features(self, x: Tensor) -> Tensor:
            return self.inner(x * 1)

    class Itself(HoldsActivated):
        def features(self, x: Tensor) -> Tensor:
            return self(x * 1)

    class Inherits(HoldsActivated):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

        def features(self, x: Tensor) -> Tensor:
            return super().forward(x * 1)

    _, what = check(lambda: nn.Sequential(nn.InstanceNorm2d(3), HoldsActivated()), (2, 3, 6, 5))
    assert what == {"0": "norm + leaky_relu"}
    for make in (Again, Also, Itself, Inherits):
        plain = nn.Sequential(nn.InstanceNorm2d(3), make())
        fused, what = check(lambda plain=plain: copy.deepcopy(plain), (2, 3, 6, 5))  # type: ignore[misc]
        assert what == {"0": "norm"}
        if make is not Again:
            x = torch.randn(2, 3, 6, 5)
            torch.testing.assert_close(fused.float()[1].features(x), plain[1].features(x))


def test_body_of_a_residual_block_that_another_method_calls_through_a_third() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Residual().body

        def branch(self, x: Tensor) -> Tensor:
            return self.body(x)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.branch(x)

    class Features(Branches):
        def features(self, x: Tensor) -> Tensor:
            return self.branch(x)

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bodies = nn.ModuleList([Residual().body])

        def forward(self, x: Tensor) -> Tensor:
            return x + self.bodies[0](x)

    class ListedFeatures(Listed):
        def features(self, x: Tensor) -> Tensor:
            return self.bodies[0](x)

    for make, first in (
        (Branches, "norm + reflect_pad(1)"),
        (Features, "norm"),
        (Listed, "norm + reflect_pad(1)"),
        (ListedFeatures, "norm"),
    ):
        plain = nn.Sequential(nn.InstanceNorm2d(3), make())
        fused, what = check(lambda plain=plain: copy.deepcopy(plain), (2, 3, 6, 5))  # type: ignore[misc]
        assert list(what.values()) == [first, "norm + residual"]
        if first == "norm":
            x = torch.randn(2, 3, 6, 5)
            torch.testing.assert_close(fused.float()[1].features(x), plain[1].features(x))


def test_body_of_a_residual_block_that_its_owner_calls() -> None:
    class Iterates(Residual):
        def bodies(self, x: Tensor) -> list[Tensor]:
            return [body(x) for body in self.children()]

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Sequential(nn.InstanceNorm2d(3), Residual())

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

        def branch(self, x: Tensor, block: Residual) -> Tensor:
            return block.body(x)

    for make in (lambda: nn.Sequential(nn.InstanceNorm2d(3), Iterates()), Reads):
        _, what = check(make, (2, 3, 6, 5))
        assert list(what.values()) == ["norm", "norm + residual"]


def test_broadcast_residual() -> None:
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.scale = nn.InstanceNorm2d(3), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale(x.mean((2, 3), keepdim=True)) + self.norm(x)

    _, what = check(Broadcast, (2, 3, 5, 5))
    assert what == {"norm": "norm + residual"}


def test_a_number_added_to_a_norm() -> None:
    class Shifts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.InstanceNorm2d(3)

        def forward(self, x: Tensor, shift: float = 0.5) -> Tensor:
            return torch.relu(self.norm(x) + shift)

    check(Shifts, (2, 3, 5, 5))


def test_running_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True), nn.ReLU())
    report = fastgan.fuse(model)
    assert not report.fused
    assert type(model[1]) is nn.InstanceNorm2d
    assert "track_running_stats" in str(report)


def test_hooks_keep_firing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.InstanceNorm2d(4), nn.ReLU())
    plain = copy.deepcopy(model)
    seen: list[Tensor] = []
    model[1].register_forward_hook(lambda m, i, o: seen.append(o.clone()))
    model[4].register_forward_pre_hook(lambda m, i: seen.append(i[0].clone()))
    report = fastgan.fuse(model)
    assert report.left == [("1", "it has hooks")]
    assert [f.what for f in report.fused] == ["norm"]
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(model(x), plain(x))
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], plain[:2](x))
    torch.testing.assert_close(seen[1], plain[:4](x))


def test_modules_with_a_call_of_their_own_get_what_they_got() -> None:
    class Doubles(Residual):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x) + x

    _, what = check(lambda: nn.Sequential(nn.InstanceNorm2d(3), Doubles(), Doubles()), (2, 3, 6, 5))
    assert what == {"0": "norm", "1.body.2": "norm + residual", "2.body.2": "norm + residual"}


def test_untraceable_forward_is_reported_and_right() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.relu = nn.InstanceNorm2d(3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.norm(x)) if x.sum() > 0 else self.norm(x)

    model = Branches()
    report = fastgan.fuse(model)
    assert [f.what for f in report.fused] == ["norm"]
    assert len(report.left) == 1
    assert "cannot trace" in report.left[0][1]
    for sign in (1.0, -1.0):
        x = torch.randn(2, 3, 5, 5).abs() * sign
        torch.testing.assert_close(model(x), Branches()(x))


def test_forward_that_only_raises() -> None:
    class Encodes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.relu = nn.InstanceNorm2d(3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError

        def encode(self, x: Tensor) -> Tensor:
            return self.relu(self.norm(x))

    plain, fused = Encodes(), Encodes()
    report = fastgan.fuse(fused)
    assert [fusion.what for fusion in report.fused] == ["norm"]
    assert report.left == [("", "what follows its norms: torch.fx cannot trace its forward (NotImplementedError)")]
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(fused.encode(x), plain.encode(x))


@pytest.mark.parametrize("flag", ["training", "relu.training"])
def test_training_dependent_forward_is_not_frozen(flag: str) -> None:
    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.relu = nn.InstanceNorm2d(3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return nnf.dropout(self.relu(self.norm(x)), 0.5, operator.attrgetter(flag)(self))

    model = Drops()
    model.norm.eval()
    report = fastgan.fuse(model)
    assert [m.training for m in (model, model.norm, model.relu)] == [True, False, True]
    assert "training flag" in str(report)
    x = torch.randn(2, 3, 5, 5)
    assert (model.train()(x) == 0).float().mean() > 0.6
    torch.testing.assert_close(model.eval()(x), Drops().eval()(x))


def test_subclasses_and_bare_norms() -> None:
    class Mine(nn.InstanceNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    model = nn.Sequential(Mine(3), nn.ReLU())
    assert not fastgan.fuse(model).fused
    assert "nothing holds it" in str(fastgan.fuse(nn.InstanceNorm2d(3)))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        fastgan.fuse(lambda x: x)  # type: ignore[arg-type]


class Block(nn.Module):
    """What the tests below vary: convolution, norm, LeakyReLU, which is not idempotent."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.InstanceNorm2d(3), nn.LeakyReLU(0.2)
        self.pad = nn.ReflectionPad2d(1)
        self.calls = 0
        self.log: dict[str, list[Tensor]] = {"outputs": []}
        self.counter = itertools.count()

    def encode(self, x: Tensor) -> Tensor:
        return self.pad(self.act(x + self.norm(self.conv(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x)


def test_other_methods_of_a_rewritten_class_compute_what_they_did() -> None:
    plain = Block()
    fused = copy.deepcopy(plain)
    assert report_of(fused) == {"norm": "norm + residual + leaky_relu + reflect_pad(1)"}
    x = torch.randn(2, 3, 6, 5)
    torch.testing.assert_close(fused(x), plain(x))
    torch.testing.assert_close(fused.encode(x), plain.encode(x))  # type: ignore[operator]


class Pieces(nn.Module):
    """CUT's generator and discriminators with feature matching read what is between the modules of an nn.Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.InstanceNorm2d(3), nn.LeakyReLU(0.2), nn.ReflectionPad2d(1), nn.Conv2d(3, 3, 3))
        self.whole = nn.Sequential(nn.InstanceNorm2d(3), nn.LeakyReLU(0.2))

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(self.model(x))


class Enumerated(Pieces):
    def features(self, x: Tensor) -> list[Tensor]:
        found = []
        for _, layer in enumerate(self.model):
            x = layer(x)
            found.append(x)
        return found


class Itself(nn.Sequential):
    def features(self, x: Tensor) -> list[Tensor]:
        return [x := layer(x) for layer in self]


class Initialised(nn.Sequential):
    """Not called: only looked at."""

    def features(self, x: Tensor) -> list[Tensor]:
        for layer in self:
            layer.requires_grad_(True)
        return [self(x)]


def test_sequential_that_calls_its_own_modules() -> None:
    for make, what in ((Itself, "norm"), (Initialised, "norm + leaky_relu")):
        plain = make(nn.InstanceNorm2d(3), nn.LeakyReLU(0.2))
        fused = copy.deepcopy(plain)
        assert report_of(fused) == {"0": what}
        x = torch.randn(2, 3, 6, 5)
        torch.testing.assert_close(fused.features(x), plain.features(x))  # type: ignore[operator]


class Indexed(Pieces):
    def features(self, x: Tensor) -> list[Tensor]:
        return [self.model[0](x)]


class Sliced(Pieces):
    def features(self, x: Tensor) -> list[Tensor]:
        head = self.model[:2]
        return [head(x)]


class Named(Pieces):
    def features(self, x: Tensor) -> list[Tensor]:
        for name, layer in self.model.named_children():
            x = layer(x)
            if name == "1":
                break
        return [x]


class Renamed(Pieces):
    def features(self, x: Tensor) -> list[Tensor]:
        layers = self.model
        return [x := layers[k](x) for k in range(len(layers))]


class Reassigned(Pieces):
    def features(self, x: Tensor) -> list[Tensor]:
        layer = self.model
        layer = layer[0]  # type: ignore[assignment]
        return [layer(x)]


class Iterator(Pieces):
    def features(self, x: Tensor) -> list[Tensor]:
        layers = iter(list(self.model.children()))
        return [x := layer(x) for layer in layers]


class Zipped(Pieces):
    def features(self, x: Tensor) -> list[Tensor]:
        found = []
        for k, (layer, _) in enumerate(zip(self.model, range(4), strict=True)):
            x = layer(x)
            found += [x * k]
        return found


class Elsewhere(Pieces):
    def features(self, x: Tensor) -> list[Tensor]:
        return outputs_of(self.model, x)


def outputs_of(layers: nn.Sequential, x: Tensor) -> list[Tensor]:
    return [x := layer(x) for layer in layers]


class ByName(Pieces):
    def features(self, x: Tensor) -> list[Tensor]:
        return [x := getattr(self.model, name)(x) for name in ("0", "1")]


class Starred(Pieces):
    def features(self, x: Tensor) -> list[Tensor]:
        return [x := layer(x) for layer in [*self.model]]


class Unpacked(Pieces):
    def features(self, x: Tensor) -> list[Tensor]:
        norm, act, *_ = self.model
        return [norm(x), act(norm(x))]


class Yielded(Pieces):
    def features(self, x: Tensor) -> list[Tensor]:
        def layers() -> Generator[nn.Module]:
            yield from self.model

        return [x := layer(x) for layer in layers()]


class ByMethods(Pieces):
    def features(self, x: Tensor) -> list[Tensor]:
        return [self.model.__getitem__(1)(x), next(self.model.__iter__())(x)]


class ByForward(Pieces):
    def features(self, x: Tensor) -> list[Tensor]:
        return [x := layer.forward(x) for layer in self.model]


class Lambda(Pieces):
    features = lambda self, x: [self.model[0](x)]


def first_output(self: Pieces, x: Tensor) -> list[Tensor]:
    return [self.model[0](x)]


class FromFunction(Pieces):
    features = first_output


class OtherName(Pieces):
    def features(this, x: Tensor) -> list[Tensor]:  # noqa: N805
        return [this.model[0](x)]


class Mixin:
    def features(self, x: Tensor) -> list[Tensor]:
        return [x := layer(x) for layer in self.model]  # type: ignore[attr-defined]


class Mixed(Mixin, Pieces):
    pass


def undone(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: method(*args)


class Decorated(Pieces):
    @undone
    def features(self, x: Tensor) -> list[Tensor]:
        return [self.model[0](x)]


class AsDict(Pieces):
    def features(self, x: Tensor) -> list[Tensor]:
        modules = dict(self.named_modules())
        return [modules["whole.0"](x)]


unread: dict[str, Any] = {"Pieces": Pieces}
exec("class NoSource(Pieces):\n    def features(self, x):\n        return [self.whole[0](x)]\n", unread)


class Looped(Pieces):
    """Over stages, and over the modules of each."""

    def features(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.children():
            for layer in stage:
                x = layer(x)
                found.append(x)
        return found


class Unharmed(Pieces):
    """What takes nothing apart."""

    def features(self, x: Tensor) -> list[Tensor]:
        for layer in self.model:
            if isinstance(layer, nn.Conv2d):
                nn.init.zeros_(layer.weight)
        chosen = self.model if len(self.model) > 1 else self.whole
        x = checkpoint(chosen, x, use_reentrant=False)
        x = x.real  # a name that is given what is read from it
        for stage in (self.whole, *self.model.modules()):
            stage.train(self.training)
        return [stage(x) for stage in [self.whole]]


def test_children_called_by_attribute() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(OrderedDict(norm=nn.InstanceNorm2d(3), act=nn.LeakyReLU(0.2)))

        def forward(self, x: Tensor) -> Tensor:
            h = self.net.norm(x)
            return torch.cat([h, self.net.act(h)])

    class Renamed(Named):
        def forward(self, x: Tensor) -> Tensor:
            net = self.net
            return net.act(net.norm(x))

    for make in (Named, Renamed):
        _, what = check(make, (2, 3, 6, 5))
        assert what == {"net.norm": "norm"}


def test_sequential_that_a_function_on_the_instance_takes_apart() -> None:
    model = Pieces()
    model.features = lambda x: [model.model[0](x)]  # type: ignore[assignment]
    assert report_of(model) == {"model.0": "norm", "whole.0": "norm + leaky_relu"}


def test_sequential_that_another_module_takes_apart() -> None:
    class Taps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Pieces()

        def forward(self, x: Tensor) -> list[Tensor]:
            return [x := layer(x) for layer in self.net.model]

    plain = Taps()
    fused = copy.deepcopy(plain)
    assert report_of(fused) == {"net.model.0": "norm", "net.whole.0": "norm + leaky_relu"}
    x = torch.randn(2, 3, 6, 5)
    torch.testing.assert_close(fused(x), plain(x))


@pytest.mark.parametrize(
    "make",
    [
        *(Enumerated, Indexed, Sliced, Named, Renamed, Iterator, Zipped, Elsewhere, ByName, Starred, Unpacked, Yielded),
        *(Reassigned, ByMethods, ByForward, Lambda, FromFunction, OtherName, Mixed, Decorated),
    ],
)
def test_sequential_called_module_by_module(make: type[Pieces]) -> None:
    plain = make()
    fused = copy.deepcopy(plain)
    report = fastgan.fuse(fused)
    assert {fusion.name: fusion.what for fusion in report.fused} == {"model.0": "norm", "whole.0": "norm + leaky_relu"}
    assert report.left == [("model", "what follows its norms: its modules are called one by one")]
    x = torch.randn(2, 3, 6, 5)
    torch.testing.assert_close(fused.features(x), plain.features(x))  # type: ignore[operator]
    torch.testing.assert_close(fused(x), plain(x))


@pytest.mark.parametrize(
    ("make", "what"),
    [(Looped, "norm"), (AsDict, "norm"), (unread["NoSource"], "norm"), (Unharmed, "norm + leaky_relu")],
)
def test_sequentials_in_loops_or_unread_methods(make: type[Pieces], what: str) -> None:
    plain = make()
    fused = copy.deepcopy(plain)
    report = fastgan.fuse(fused)
    assert {fusion.name: fusion.what for fusion in report.fused}["whole.0"] == what
    assert ("the source of NoSource cannot be read" in str(report)) == (make.__name__ == "NoSource")
    x = torch.randn(2, 3, 6, 5)
    torch.testing.assert_close(fused.features(x), plain.features(x))


def test_residual_of_a_body_that_ends_in_an_nn_sequential_or_an_identity() -> None:
    class Body(nn.Sequential):
        pass

    class Residual(nn.Module):
        def __init__(self, *last: nn.Module) -> None:
            super().__init__()
            self.body = Body(nn.Conv2d(3, 3, 3, padding=1), *last)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.body(x)

    fused, what = check(lambda: Residual(nn.Sequential(nn.Identity(), nn.InstanceNorm2d(3))), (2, 3, 6, 5))
    assert what == {"body.1.1": "norm + residual"}
    assert isinstance(fused.body, Body)
    _, what = check(lambda: Residual(nn.InstanceNorm2d(3), nn.Identity()), (2, 3, 6, 5))
    assert what == {"body.1": "norm + residual"}


class NoGrad(Block):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.act(self.norm(x))
        return x * y


class Autocast(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        with torch.autocast("cpu", enabled=False):
            return self.act(self.norm(y.float()))


class Checkpointed(Block):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.encode, x, use_reentrant=False)  # type: ignore[no-any-return]


class Counting(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.act(self.norm(x))


class Typed(Block):
    def joined(self, x: Tensor | list[Tensor]) -> Tensor:
        return torch.cat(x, 1) if isinstance(x, list) else x

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        return self.act(self.norm(self.joined(x)))


class IsTensor(Block):
    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        return self.act(self.norm(x if torch.is_tensor(x) else x[0]))


class Chance(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(x))
        return y if random.random() < 1 else x


class TorchChance(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(x))
        return y if torch.rand(()) < 1 else x


class Seeded(Block):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(5)
        return self.act(self.norm(x)) + torch.randn_like(x)


class Optional(Block):
    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        y = self.act(self.norm(x))
        return y if skip is None else y * skip


class GradMode(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(x))
        return y if torch.is_grad_enabled() else y + 1


class RequiredOrNone(Block):
    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        y = self.act(self.norm(x))
        return y if skip is None else y * skip


def exists(value: object) -> bool:
    return value is not None


class AskedElsewhere(Block):
    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        y = self.act(self.norm(x))
        return y * skip if exists(skip) else y


class ByDtype(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(x))
        return {torch.float32: y}.get(x.dtype, x)  # type: ignore[call-overload, no-any-return]


class InSet(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(x))
        return y if x.shape in {torch.Size((1, 3, 4, 4))} else x


class HasMask(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(x))
        return y * x.mask if hasattr(x, "mask") else y


class Masked(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x)) * x.mask  # type: ignore[attr-defined, no-any-return]


class Tries(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(x))
        try:
            return y * float(x.mean())
        except TypeError:
            return y


class AnyNumber(Block):
    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return self.act(self.norm(x)) + sum(more)


class Logging(Block):
    def forward(self, x: Tensor) -> Tensor:
        self.log["outputs"].append(y := self.act(self.norm(x)))
        return y


class LoggingByAnotherName(Block):
    def forward(self, x: Tensor) -> Tensor:
        outputs = self.log["outputs"]
        outputs.append(y := self.act(self.norm(x)))
        return y


class Marking(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(x))
        self.act.last = y
        return y


class MarkingByAnotherName(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(x))
        attributes = vars(self.conv)
        attributes.update(last=y)
        return y


class Numbered(Block):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x)) * next(self.counter)


class Printing(Block):
    def forward(self, x: Tensor) -> Tensor:
        print("forward")
        return self.act(self.norm(x))


unread["Block"] = Block
exec("class Unread(Block):\n    def forward(self, x):\n        return self.act(self.norm(x))\n", unread)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (NoGrad, "without gradients"),
        (Autocast, "another autocast"),
        (Checkpointed, "in a checkpoint"),
        (Counting, "its forward sets calls"),
        (Typed, "asks for the types"),
        (IsTensor, "asks for the types"),
        (Chance, "draws random numbers"),
        (TorchChance, "draws random numbers"),
        (Seeded, "calls torch.manual_seed for its effect"),
        (Optional, "may be called without skip"),
        (GradMode, "whether gradients"),
        (RequiredOrNone, "which object a value is"),
        (AskedElsewhere, "which object a value is"),
        (ByDtype, "looks up a value"),
        (InSet, "looks up a value"),
        (HasMask, "asks for the types"),
        (Masked, "mask, which not every tensor has"),
        (Tries, "handles exceptions"),
        (AnyNumber, "any number of arguments"),
        (Logging, "calls self.log['outputs'].append for its effect"),
        (LoggingByAnotherName, "changes what it holds"),
        (Marking, "sets last"),
        (MarkingByAnotherName, "changes what it holds"),
        (Numbered, "calls next"),
        (Printing, "calls print"),
        (unread["Unread"], "source of forward"),
    ],
)
def test_forwards_that_a_trace_would_change_are_left_alone(make: type[Block], reason: str) -> None:
    model = make()
    before = torch.get_rng_state(), random.getstate()
    report = fastgan.fuse(model)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert type(model) is make
    assert [fusion.what for fusion in report.fused] == ["norm"]
    assert reason in report.left[0][1]
    assert model.calls == 0
    assert model.log == {"outputs": []}
    assert next(model.counter) == 0
    assert not any(hasattr(module, "last") for module in model.modules())


def test_forwards_that_ask_and_change_nothing_of_theirs_are_fused() -> None:
    class Asks(Block):
        def forward(self, input: Tensor) -> Tensor:  # which is not Python's
            outputs, x = [], input
            for layer in (self.norm, self.act):
                x = layer(x)
                outputs.append(x)
            if self.log is not None and hasattr(self, "pad"):
                outputs[-1] = self.pad(outputs[-1])
            return outputs[-1]

    assert report_of(Asks()) == {"norm": "norm + leaky_relu + reflect_pad(1)"}


def test_what_interrupts_a_trace_is_none_of_it() -> None:
    """Collections of garbage, and signals."""
    seen: list[object] = []

    def note(what: object, _: object) -> None:
        seen.append(what)

    class Interrupted(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = self.act(self.norm(x))
            assert signal.raise_signal(signal.SIGUSR1) is None
            return y

    threshold, handler = gc.get_threshold(), signal.signal(signal.SIGUSR1, note)
    gc.callbacks.append(note)
    gc.set_threshold(1)
    try:
        assert report_of(Interrupted()) == {"norm": "norm + leaky_relu"}
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*threshold)
        signal.signal(signal.SIGUSR1, handler)
    assert gc.isenabled()
    assert {"start", signal.SIGUSR1} <= set(seen)


def test_a_profiler_goes_on_after_fuse() -> None:
    before = sys.getprofile()
    calls: list[str] = []
    sys.setprofile(profiler := lambda frame, event, _: calls.append(event))
    try:
        fastgan.fuse(Block())
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(before)
    assert calls


def test_buffers_changed_in_place_are_recorded() -> None:
    class Steps(Block):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.steps.add_(1)  # type: ignore[operator]
            return self.act(self.norm(x))

    model = Steps()
    assert report_of(model) == {"norm": "norm + leaky_relu"}
    assert model.steps == 0
    model(torch.randn(1, 3, 4, 4))
    assert model.steps == 1


def test_forwards_replaced_on_the_instance_and_what_norms_hold_besides() -> None:
    model = nn.Sequential(*(m for _ in range(4) for m in (nn.InstanceNorm2d(3, affine=True), nn.ReLU())))
    model[1].forward = lambda x: x * 5  # type: ignore[method-assign]
    model[2].forward = lambda x: x * 5  # type: ignore[method-assign]
    model[4].register_buffer("scale", torch.ones(3))
    model[6].register_load_state_dict_pre_hook(lambda *_: None)
    report = fastgan.fuse(model)
    assert [(fusion.name, fusion.what) for fusion in report.fused] == [("0", "norm")]
    assert [reason for _, reason in report.left] == [
        "its forward was replaced on the instance",
        "it holds more than an InstanceNorm does",
        "it has hooks",
    ]
    assert "4.scale" in model.state_dict()


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 3, 6, 5), torch.float32), ((3, 1, 1), torch.float64), ((2, 1, 3, 6, 5), torch.float32)]
)
def test_residuals_that_are_larger_or_of_another_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    class Adds(Block):
        def forward(self, x: Tensor, residual: Tensor) -> Tensor:
            return self.act(residual + self.norm(x))

    plain = Adds()
    fused = copy.deepcopy(plain)
    assert report_of(fused) == {"norm": "norm + residual + leaky_relu"}
    x, residual = torch.randn(1, 3, 6, 5), torch.randn(shape, dtype=dtype)
    torch.testing.assert_close(fused(x, residual), plain(x, residual))


def test_unbatched_images_through_residual_blocks() -> None:
    plain = ResnetGenerator()
    fused = copy.deepcopy(plain)
    report_of(fused)
    x = torch.randn(3, 16, 16)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)


def test_rewritten_modules_are_pickled_and_of_one_class() -> None:
    models = [ResnetGenerator(), ResnetGenerator()]
    for model in models:
        fastgan.fuse(model)
    blocks = [[m for m in model.modules() if hasattr(m, "conv_block")] for model in models]
    assert [type(m) for m in blocks[0]] == [type(m) for m in blocks[1]]  # torch.func.stack_module_state wants it
    loaded = pickle.loads(pickle.dumps(models[0]))
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(loaded(x), models[0](x))
    assert type(loaded.model[8]) is type(models[0].model[8])  # type: ignore[index]


class Body(nn.Sequential):
    """A residual block's body, of a class of its own."""


class WithBody(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Body(nn.Conv2d(3, 3, 3, padding=1), nn.InstanceNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def test_a_subclass_of_sequential_is_pickled() -> None:
    model, x = WithBody(), torch.randn(1, 3, 8, 8)
    assert report_of(model) == {"body.1": "norm + residual"}
    loaded = pickle.loads(pickle.dumps(model))
    assert torch.equal(loaded(x), model(x))
    assert type(loaded.body) is type(model.body)
    assert isinstance(loaded.body, Body)


def test_norms_that_pytorch_takes_are_fused() -> None:
    model, x = nn.Sequential(nn.InstanceNorm2d(6 / 2), nn.ReLU()), torch.randn(1, 3, 5, 5)
    expected = model(x)
    assert fastgan.fuse(model).fused
    torch.testing.assert_close(model(x), expected)


def test_script_modules_are_refused() -> None:
    model = nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU())
    assert ("0", "it is a ScriptModule") in fastgan.fuse(torch.jit.script(model)).left
    fastgan.fuse(model)
    with pytest.raises(RuntimeError, match=r"InstanceNormAct2d cannot be compiled by torch\.jit\.script"):
        torch.jit.script(model)


# --- what must stay -----------------------------------------------------------------------------------------------


def test_fusing_twice_changes_nothing() -> None:
    model = ResnetGenerator()
    fastgan.fuse(model)
    before = str(model)
    assert not fastgan.fuse(model).fused
    assert str(model) == before


def test_state_dict_both_ways() -> None:
    plain, fused = ResnetGenerator(affine=True), ResnetGenerator(affine=True)
    fastgan.fuse(fused)
    x = torch.randn(1, 3, 16, 16)
    fused.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-5)
    other = ResnetGenerator(affine=True)
    fused2 = copy.deepcopy(fused)
    other.load_state_dict(fused2.state_dict())
    torch.testing.assert_close(other(x), fused2(x), rtol=1e-4, atol=1e-5)


def test_parameters_are_the_same_objects_and_modes_follow() -> None:
    model = ResnetGenerator(affine=True).eval()
    parameters = dict(model.named_parameters())
    fastgan.fuse(model)
    after = dict(model.named_parameters())
    assert all(after[name] is parameter for name, parameter in parameters.items())
    assert not any(m.training for m in model.modules())
    model.train()
    assert all(m.training for m in model.modules())
    assert all(isinstance(m, _InstanceNormAct) for m in model.modules() if isinstance(m, nn.InstanceNorm2d))


def test_channels_last_is_kept() -> None:
    model = ResnetGenerator().to(memory_format=torch.channels_last)
    fastgan.fuse(model)
    seen = []
    for module in model.modules():
        if isinstance(module, _InstanceNormAct):
            module.register_forward_hook(
                lambda m, i, o: seen.append(o.is_contiguous(memory_format=torch.channels_last))
            )
    model(torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last))
    assert len(seen) == 9
    assert all(seen)


def test_compiles_without_graph_breaks() -> None:
    model = PatchDiscriminator()
    fastgan.fuse(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(compiled(x), model(x))


def test_residual_blocks_compile_with_their_gradients() -> None:
    model = ResnetGenerator()
    fastgan.fuse(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    want = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    got = torch.autograd.grad(compiled(x).square().sum(), [x, *model.parameters()])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_interior_is_a_view_with_every_derivative(dims: int) -> None:
    inner = (slice(None),) * 2 + (slice(2, -2),) * dims
    x = torch.randn(2, 1, *(5,) * dims, dtype=torch.float64, requires_grad=True)
    assert interior(x, 2, dims).data_ptr() == x[inner].data_ptr()
    torch.testing.assert_close(interior(x, 2, dims), x[inner], rtol=0, atol=0)
    assert torch.autograd.gradcheck(lambda t: interior(t, 2, dims), (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda t: interior(t, 2, dims).square(), (x,))
    torch.testing.assert_close(torch.vmap(lambda t: interior(t, 2, dims))(x.detach()[None])[0], x.detach()[inner])


def test_programs_without_fastgan(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU(), nn.ReflectionPad2d(1))
    x, y = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    want = model(y).detach()
    fastgan.fuse(model.eval())
    with fastgan.use_backend("reference"):
        program = torch.export.export(model, (x,))
    assert "fastgan" not in str(program.graph)
    assert "fastgan" in str(torch.export.export(model, (x,)).graph)
    torch.testing.assert_close(program.module()(y).detach(), want)
    with torch.no_grad():
        torch.jit.trace(model, x).save(tmp_path / "model.pt")
    torch.testing.assert_close(torch.jit.load(tmp_path / "model.pt")(y), want)


def test_a_fused_model_can_be_traced_by_fx() -> None:
    model = ResnetGenerator()
    fastgan.fuse(model)
    traced = fx.symbolic_trace(model)
    norms = {name for name, module in model.named_modules() if isinstance(module, _InstanceNormAct)}
    assert norms <= {node.target for node in traced.graph.nodes if node.op == "call_module"}
    results = []
    for net in (model, traced):
        x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        results.append((y := net(x), *torch.autograd.grad(y.square().sum(), [x, *net.parameters()])))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
