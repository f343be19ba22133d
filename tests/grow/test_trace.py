from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from grow.axes import NO_SPACE, Segment
from grow.layers import SparseConv2d, SparseLinear
from grow.topology import Space
from grow.trace import TraceError, trace
from tests.contracts.modules import SAMPLES, Convolutional, ConvolutionalCoupled, Coupled


class Computed(nn.Module):
    """A module with some layers and a forward that a test supplies."""

    def __init__(self, compute: Callable[["Computed", Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.compute = compute
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
@pytest.mark.parametrize("training", [False, True])
def test_a_traced_module_computes_what_the_module_computes(sample, training: bool) -> None:
    module = sample.build().train(training)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    x = sample.inputs(dtype=torch.float32)
    traced = trace(module, x[:1]).module
    assert all(child.training == training for child in traced.children())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    torch.testing.assert_close(traced(x), module(x))
    assert not {id(tensor) for tensor in traced.parameters()} & {id(tensor) for tensor in module.parameters()}


def test_layers_become_sparse_and_create_spaces() -> None:
    traced = trace(Convolutional(), torch.zeros(1, 2, 6, 6))
    assert traced.spaces == (
        Space("input", 2, "input"),
        Space("conv1", 4, "hidden"),
        Space("conv2", 5, "hidden"),
        Space("fc1", 6, "hidden"),
        Space("output", 3, "output"),
    )
    assert isinstance(traced.module.get_submodule("conv1"), SparseConv2d)
    assert isinstance(traced.module.get_submodule("fc2"), SparseLinear)


def test_every_axis_knows_its_space_and_what_does_not_scale_has_none() -> None:
    axes = trace(Convolutional(), torch.zeros(1, 2, 6, 6)).axes
    assert axes["conv2.weight"] == ((Segment("conv2"),), (Segment("conv1"),), NO_SPACE, NO_SPACE)
    assert axes["norm1.running_var"] == ((Segment("conv1"),),)
    assert axes["fc1.weight"] == ((Segment("fc1"),), (Segment("conv2", 4),))
    assert axes["fc2.bias"] == ((Segment("output"),),)
    assert axes["norm2.num_batches_tracked"] == ()


def test_an_addition_merges_spaces_and_a_concatenation_joins_axes() -> None:
    traced = trace(Coupled(), torch.zeros(1, 5))
    assert [space.name for space in traced.spaces] == ["input", "stem", "side", "middle", "output"]
    assert traced.axes["block.weight"] == ((Segment("stem"),), (Segment("stem"),))
    assert traced.axes["middle.weight"] == ((Segment("middle"),), (Segment("stem"), Segment("side")))


def test_flattening_after_a_concatenation_repeats_every_segment() -> None:
    traced = trace(ConvolutionalCoupled(), torch.zeros(1, 2, 5, 5))
    assert traced.axes["head.weight"] == ((Segment("output"),), (Segment("stem", 9), Segment("side", 9)))


def test_sites_count_the_values_of_a_unit_where_a_layer_reads_and_writes() -> None:
    sites = {site.layer: (site.source_values, site.target_values) for site in trace(Convolutional(), torch.zeros(1, 2, 6, 6)).sites}
    assert sites == {"conv1": (36, 36), "conv2": (36, 16), "fc1": (1, 1), "fc2": (1, 1)}


def test_what_is_added_to_the_input_is_fixed_with_it() -> None:
    module = Computed(lambda m, x: m.head(x + m.block(x)), block=nn.Linear(5, 5), head=nn.Linear(5, 2))
    assert [space.role for space in trace(module, torch.zeros(1, 5)).spaces] == ["input", "output"]


def test_layers_that_are_called_input_and_output_do_not_take_these_names() -> None:
    module = Computed(lambda m, x: m.head(m.output(m.input(x))), input=nn.Linear(5, 4), output=nn.Linear(4, 3), head=nn.Linear(3, 2))
    spaces = trace(module, torch.zeros(1, 5)).spaces
    assert [space.name for space in spaces] == ["input", "input units", "output units", "output"]


def test_views_that_follow_the_batch_are_flattened() -> None:
    module = Computed(lambda m, x: m.fc(m.conv(x).view(x.size(0), -1)), conv=nn.Conv2d(1, 2, 3), fc=nn.Linear(8, 3))
    assert trace(module, torch.zeros(1, 1, 4, 4)).axes["fc.weight"][1] == (Segment("conv", 4),)


def shared() -> nn.Module:
    module = Computed(lambda m, x: m.b(m.a(x)), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    module.b.weight = module.a.weight
    return module


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.scale


REFUSED = {
    "an unknown module": (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), (4,), "module '1' is the operator LayerNorm.*; rewrite it"),
    "an unknown function": (
        Computed(lambda m, x: torch.sin(m.fc(x)), fc=nn.Linear(4, 4)),
        (4,),
        "node 'sin' is the operator sin.*; rewrite",
    ),
    "an unknown method": (Computed(lambda m, x: m.fc(x).cumsum(1), fc=nn.Linear(4, 4)), (4,), "node 'cumsum' is the operator cumsum"),
    "a module with parts of its own": (
        nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 2)),
        (4,),
        "module '1' is the operator TransformerEncoderLayer",
    ),
    "a parameter outside of layers": (Scaled(), (4,), "node 'scale' is the operator scale"),
    "a branch on data": (Branching(), (4,), "module is Branching, but must be traceable.*; keep data-dependent branches out of forward"),
    "shared weights": (shared(), (4,), "tensor 'b.weight' is shared.*; give each module its own weights"),
    "a layer called twice": (
        Computed(lambda m, x: m.fc(m.fc(x)), fc=nn.Linear(4, 4)),
        (4,),
        "module 'fc' is called twice.*; give each call",
    ),
    "groups": (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), (4, 5, 5), "module '0' has groups=2, but must have 1; use"),
    "another padding": (
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
        (4, 5, 5),
        "module '0' has padding_mode='reflect'",
    ),
    "padding by a word": (nn.Sequential(nn.Conv2d(4, 4, 3, padding="same")), (4, 5, 5), "padding='same'.*; write"),
    "a linear layer on a map": (nn.Sequential(nn.Linear(5, 4)), (4, 5), "module '0' reads a tensor of 3 dimensions.*; flatten before it"),
    "literal sizes": (
        Computed(lambda m, x: m.fc(m.conv(x).view(-1, 8)), conv=nn.Conv2d(1, 2, 3), fc=nn.Linear(8, 3)),
        (1, 4, 4),
        r"node 'view' has the literal sizes \(-1, 8\).*; use torch.flatten",
    ),
    "a flattened batch": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(0)), (1, 4, 4), "node '_1' gives the shape .*; use torch.flatten"),
    "some of the units": (
        Computed(lambda m, x: m.fc(x)[:, :2], fc=nn.Linear(4, 4)),
        (4,),
        "node 'getitem' is the operator getitem of a tensor",
    ),
    "one unit added to all": (
        Computed(lambda m, x: m.fc(x) + x[:, :1], fc=nn.Linear(4, 4)),
        (4,),
        "node 'getitem' is the operator getitem of a tensor",
    ),
    "one unit broadcast": (
        Computed(lambda m, x: m.a(x) + m.b(x), a=nn.Linear(4, 4), b=nn.Linear(4, 1)),
        (4,),
        "node 'add' adds units in segments of .*; align the operands",
    ),
    "a product of units": (Computed(lambda m, x: m.fc(x) * x, fc=nn.Linear(4, 4)), (4,), "node 'mul' is the operator multiplication"),
    "joined samples": (
        Computed(lambda m, x: torch.cat([m.fc(x), x]), fc=nn.Linear(4, 4)),
        (4,),
        "node 'cat' concatenates along dim 0.*; join",
    ),
    "a tensor by keyword": (
        Computed(lambda m, x: torch.tanh(input=m.fc(x)), fc=nn.Linear(4, 4)),
        (4,),
        "node 'tanh' reads no tensor .*; pass the tensor by position",
    ),
    "no layers": (nn.Sequential(nn.ReLU()), (4,), "no layer with connections.* Linear or Conv2d"),
    "an example of another shape": (
        nn.Sequential(nn.Linear(5, 4)),
        (4,),
        r"example has shape \(1, 4\), but must be an input.*; pass one sample",
    ),
    "a module that fails on the example": (
        nn.Sequential(nn.Linear(4, 4), nn.CosineSimilarity()),
        (4,),
        "module '1' failed on it: .*x2",
    ),
    "a module of several outputs": (nn.Sequential(nn.LSTM(4, 4)), (4,), "module '0' is the operator LSTM.*; rewrite it"),
    "a bare layer": (nn.Linear(4, 4), (4,), r"module is a bare Linear.*; pass nn.Sequential\(Linear"),
    "dropout whose mode is frozen": (
        Computed(lambda m, x: nn.functional.dropout(m.fc(x), 0.5, m.training), fc=nn.Linear(4, 4)),
        (4,),
        "node 'dropout' is functional.dropout.*; use nn.Dropout",
    ),
    "an example without units": (nn.Sequential(nn.Identity()), (), r"example has shape \(1,\), but must have a batch and a unit dimension"),
}


@pytest.mark.parametrize(("module", "shape", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_followed_is_an_error_that_names_it_and_the_remedy(
    module: nn.Module, shape: tuple[int, ...], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        trace(module, torch.zeros(1, *shape))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
