import copy
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from grow.axes import NO_SPACE, Moves, Segment, reindex
from grow.export import plain
from grow.layers import SparseConv2d, SparseLinear
from grow.network import Network
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


def test_a_literal_size_follows_the_units_that_it_counts() -> None:
    """The classical LeNet writes x.view(-1, 400): the batch must stay when channels go."""
    module = Computed(lambda m, x: m.fc(m.conv(x).view(-1, 8)), conv=nn.Conv2d(1, 2, 3), fc=nn.Linear(8, 3))
    network = Network(module, torch.zeros(1, 1, 4, 4))
    network.remove_units("conv", [0])
    assert network.axes["fc.weight"][1] == (Segment("conv", 4),)
    assert network(torch.zeros(7, 1, 4, 4)).shape == (7, 3)


def test_a_product_couples_units_and_a_parameter_follows_what_it_scales() -> None:
    module = Computed(
        lambda m, x: m.head(m.a(x) * torch.sigmoid(m.b(x)) * m.scale), a=nn.Linear(4, 5), b=nn.Linear(4, 5), head=nn.Linear(5, 2)
    )
    module.scale = nn.Parameter(torch.ones(5))
    traced = trace(module, torch.zeros(1, 4))
    assert [space.name for space in traced.spaces] == ["input", "a", "output"]
    assert traced.axes["b.weight"][0] == traced.axes["scale"][0] == (Segment("a"),)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 6), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.fc(x).chunk(2, 1)
        return self.head(value * torch.sigmoid(gate))


class Parted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.a, self.b = nn.Linear(4, 6), nn.Linear(2, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        both = self.fc(x)
        return self.a(both[:, :2]) + self.b(both[:, 2:])


def test_chunks_that_meet_are_one_space() -> None:
    module, x = Gated(), torch.randn(3, 4)
    network = Network(module, x[:1])
    assert network.axes["fc.weight"][0] == (Segment("fc"), Segment("fc"))
    network.split_units("fc", [1])
    torch.testing.assert_close(network(x), module(x))


def test_slices_that_part_are_spaces_of_their_own() -> None:
    module, x = Parted(), torch.randn(3, 4)
    network = Network(module, x[:1])
    assert network.axes["fc.weight"][0] == (Segment("fc"), Segment("fc part 2"))
    network.split_units("fc", [1])
    network.split_units("fc part 2", [0, 3])
    torch.testing.assert_close(network(x), module(x))
    network.remove_units("fc part 2", [0, 4])
    with torch.no_grad():
        module.b.weight[:, 0] = 0
    torch.testing.assert_close(network(x), module(x))


class FusedAttention(nn.Module):
    """Attention as many write it: one projection for q, k and v, literal sizes, the width read off the input."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] @ qkv[1].transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(dim=-1)
        return self.out((weights @ qkv[2]).transpose(1, 2).reshape(b, n, c))


def test_the_heads_of_a_fused_projection_are_one_space() -> None:
    module = nn.Sequential(OrderedDict(stem=nn.Linear(5, 8), attention=FusedAttention()))
    network, x = Network(module, torch.zeros(1, 3, 5)), torch.randn(4, 3, 5)
    heads = Segment("attention.heads", 4)
    assert network.axes["attention.qkv.weight"] == ((heads, heads, heads), (Segment("stem"),))
    assert network.axes["attention.out.weight"][1] == (heads,)
    network.add_units("attention.heads", 1, torch.Generator().manual_seed(0), fan_in=3, fan_out=3)
    torch.testing.assert_close(network(x), module(x))
    network.remove_units("attention.heads", [0])
    without = copy.deepcopy(module)
    with torch.no_grad():
        without.attention.out.weight[:, :4] = 0
    torch.testing.assert_close(network(x), without(x))


def test_one_fused_head_does_not_tell_what_a_unit_is() -> None:
    with pytest.raises(TraceError, match=r"node 'view' splits units into \(3, 8\), and nothing tells which"):
        trace(nn.Sequential(nn.Linear(5, 8), FusedAttention(1)), torch.zeros(1, 3, 5))


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_in_the_place_of_torchs_gives_the_same(batch_first: bool) -> None:
    torch.manual_seed(0)
    kind = {"embed_dim": 8, "num_heads": 2, "batch_first": batch_first}
    module = Computed(lambda m, x: m.fc(m.mha(x, m.key(x), m.value(x))[0]), fc=nn.Linear(8, 3), key=nn.Linear(8, 6), value=nn.Linear(8, 5))
    module.mha = nn.MultiheadAttention(**kind, kdim=6, vdim=5)
    x = torch.randn(4, 3, 8)
    torch.testing.assert_close(trace(module, x[:1]).module(x), module(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm_first", [True, False])
def test_an_encoder_in_the_place_of_torchs_gives_the_same_and_has_heads_and_hidden_units(norm_first: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, nn.functional.gelu, batch_first=True, norm_first=norm_first)
    module = nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False), nn.Linear(8, 3))
    x = torch.randn(4, 3, 5)
    traced = trace(module, x[:1])
    torch.testing.assert_close(traced.module(x), module(x), rtol=1e-5, atol=1e-6)
    blocks = [f"1.layers.{number}.{name}" for number in (0, 1) for name in ("attention.heads", "fc1")]
    assert [space.name for space in traced.spaces] == ["input", "0", *blocks, "output"]
    assert [space.name for space in traced.spaces if space.mixed] == ["0"]


def test_learned_positions_and_class_tokens_follow_the_stream_that_they_join() -> None:
    module = Computed(
        lambda m, x: m.head(torch.cat([m.token.expand(x.size(0), -1, -1), m.embedding(x) + m.positions[:, : x.size(1)]], 1)[:, 0]),
        embedding=nn.Embedding(7, 6),
        head=nn.Linear(6, 2),
    )
    module.positions, module.token = nn.Parameter(torch.randn(1, 5, 6)), nn.Parameter(torch.randn(1, 1, 6))
    network = Network(module, torch.zeros(1, 5, dtype=torch.long))
    stream = (Segment("embedding"),)
    assert network.topology.space("embedding").fed
    assert network.axes["positions"] == (NO_SPACE, NO_SPACE, stream)
    assert network.axes["token"] == (NO_SPACE, NO_SPACE, stream)
    assert network.axes["embedding.weight"] == (NO_SPACE, stream)
    network.remove_units("embedding", [2])
    assert network(torch.zeros(3, 5, dtype=torch.long)).shape == (3, 2)


class CausalAttention(nn.Module):
    """Attention with a mask in a buffer, cut to the length of the input, and positions from an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(9, 8), nn.Embedding(5, 8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.register_buffer("mask", torch.tril(torch.ones(5, 5)).view(1, 1, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        b, t = x.size()
        x = self.tokens(x) + self.places(torch.arange(t, device=x.device))
        q, k, v = self.qkv(x).split(8, dim=2)
        q, k, v = (part.view(b, t, 2, 4).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.transpose(-2, -1) * k.size(-1) ** -0.5).masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))
        return x + self.out((torch.softmax(weights, -1) @ v).transpose(1, 2).contiguous().view(b, t, -1))


def test_masks_and_positions_do_not_scale_and_heads_of_split_projections_do() -> None:
    module, x = nn.Sequential(CausalAttention(), nn.Linear(8, 3)), torch.randint(9, (2, 5))
    network = Network(module, x[:1])
    assert network.axes["0.mask"] == (NO_SPACE,) * 4
    assert {space.name: space.units for space in network.topology.hidden} == {"0.tokens": 8, "0.heads": 2}
    network.split_units("0.heads", [1])
    network.split_units("0.tokens", [3])
    torch.testing.assert_close(network(x[:, :4]), module(x[:, :4]))


class Excited(nn.Module):
    """Squeeze and excitation: every channel is scaled by a gate that reads all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 2), nn.Linear(2, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        b, c, _, _ = x.size()
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3)))))).view(b, c, 1, 1)
        return self.head((x * gate).mean([2, 3]))


def test_a_gate_shares_the_units_that_it_scales() -> None:
    module, x = Excited(), torch.randn(2, 3, 6, 6)
    network = Network(module, x[:1])
    assert {space.name: space.units for space in network.topology.hidden} == {"conv": 6, "down": 2}
    network.split_units("conv", [1])
    network.split_units("down", [0])
    torch.testing.assert_close(network(x), module(x))


def test_the_channels_of_a_group_of_a_norm_are_one_unit() -> None:
    network = Network(nn.Sequential(nn.Conv2d(2, 6, 1), nn.GroupNorm(3, 6), nn.Conv2d(6, 2, 1)), torch.zeros(1, 2, 4, 4))
    assert network.topology.space("0").units == 3
    assert network.axes["1.weight"] == ((Segment("0", 2),),)
    x = torch.randn(2, 2, 4, 4)
    with torch.no_grad():
        network.layers["2"].weight[:, 2:4] = 0
    before = network(x)
    network.remove_units("0", [1])
    torch.testing.assert_close(network(x), before)


def test_a_depthwise_convolution_passes_units_on() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 3, 1))
    network, x = Network(module, torch.zeros(1, 2, 5, 5)), torch.randn(3, 2, 5, 5)
    assert network.axes["1.weight"][:2] == ((Segment("0", 2),), NO_SPACE)
    assert network.topology.possible == 4 * 2 + 8 * 9 + 3 * 8
    torch.testing.assert_close(network(x), module(x))
    network.split_units("0", [3])
    torch.testing.assert_close(network(x), module(x))
    network.prune_connections({"1": np.arange(18)})
    network.remove_units("0", [0])
    with torch.no_grad():
        module[1].weight[:2] = 0
        module[1].bias[:2] = 0
    torch.testing.assert_close(network(x), module(x))


def shared() -> nn.Module:
    module = Computed(lambda m, x: m.b(m.a(x)), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    module.b.weight = module.a.weight
    return module


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def twice(x: Tensor) -> Tensor:
    return torch.cat([x, torch.relu(x)], 1)


REFUSED = {
    "an unknown module": (nn.Sequential(nn.Linear(4, 4), nn.Softmin(1)), (4,), "module '1' is the operator Softmin.*; rewrite it"),
    "an unknown function": (
        Computed(lambda m, x: torch.sin(m.fc(x)), fc=nn.Linear(4, 4)),
        (4,),
        "node 'sin' is the operator sin.*; rewrite",
    ),
    "an unknown method": (Computed(lambda m, x: m.fc(x).cumsum(1), fc=nn.Linear(4, 4)), (4,), "node 'cumsum' is the operator cumsum"),
    "a module with parts of its own": (
        nn.Sequential(nn.Linear(4, 4), nn.GRUCell(4, 4)),
        (4,),
        "module '1' is the operator GRUCell",
    ),
    "a branch on data": (Branching(), (4,), "module is Branching, but must be traceable.*; keep data-dependent branches out of forward"),
    "shared weights": (shared(), (4,), "tensor 'b.weight' is shared.*; give each module its own weights"),
    "a layer called twice": (
        Computed(lambda m, x: m.fc(m.fc(x)), fc=nn.Linear(4, 4)),
        (4,),
        "module 'fc' is called twice.*; give each call",
    ),
    "groups": (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), (4, 5, 5), "module '0' has groups=2, but must have 1 or .* 4; use"),
    "another padding": (
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
        (4, 5, 5),
        "module '0' has padding_mode='reflect'",
    ),
    "uneven padding": (
        nn.Sequential(nn.Conv2d(4, 4, 2, padding="same")),
        (4, 5, 5),
        "padding='same', but must have a kernel of odd.*; write",
    ),
    "a literal batch": (
        Computed(lambda m, x: m.fc(m.conv(x).view(1, 8)), conv=nn.Conv2d(1, 2, 3), fc=nn.Linear(8, 3)),
        (1, 4, 4),
        r"node 'view' has the literal sizes \(1, 8\), but must follow the batch; use x.size\(0\)",
    ),
    "a flattened batch": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(0)), (1, 4, 4), "module '1' gives the shape .*; use torch.flatten"),
    "every other unit": (
        Computed(lambda m, x: m.fc(x)[:, ::2], fc=nn.Linear(4, 4)),
        (4,),
        "node 'getitem' takes every 2th unit, but must take neighbours; reorder",
    ),
    "a single unit": (
        Computed(lambda m, x: m.fc(x)[:, 1], fc=nn.Linear(4, 4)),
        (4,),
        "node 'getitem' takes entry 1 of dimension 1, whose entries are units, but must take all; use a slice",
    ),
    "one unit added to all": (
        Computed(lambda m, x: m.fc(x) + x[:, :1], fc=nn.Linear(4, 4)),
        (4,),
        "node 'add' spreads 1 unit over 4 entries.*; align the operands",
    ),
    "one unit broadcast": (
        Computed(lambda m, x: m.a(x) + m.b(x), a=nn.Linear(4, 4), b=nn.Linear(4, 1)),
        (4,),
        "node 'add' spreads 1 unit over 4 entries.*; align the operands",
    ),
    "a single unit next to itself": (
        Computed(lambda m, x: m.b(twice(m.a(x))), a=nn.Linear(4, 1), b=nn.Linear(2, 2)),
        (4,),
        "node 'cat' puts 1 unit next to itself, but must have at least 2 on each side",
    ),
    "a channel shuffle": (
        Computed(lambda m, x: m.b(m.a(x).unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2)), a=nn.Conv2d(2, 6, 1), b=nn.Conv2d(6, 2, 1)),
        (2, 4, 4),
        r"node 'unflatten' splits units into \(2, 3\), and nothing tells which of the two scales",
    ),
    "a window over units": (
        Computed(lambda m, x: nn.functional.max_pool2d(m.fc(x), 2), fc=nn.Linear(4, 4)),
        (2, 4, 4),
        "node 'max_pool2d' works across dimension 3, whose entries are units.*; pool over positions",
    ),
    "two dimensions that scale": (
        Computed(lambda m, x: m.c(m.b(m.a(x).transpose(1, 2)).flatten(1)), a=nn.Linear(4, 3), b=nn.Linear(2, 5), c=nn.Linear(15, 2)),
        (2, 4),
        r"node 'flatten' joins dimensions .*, which scale apart, but must join at most one",
    ),
    "a mask of attention": (
        Computed(lambda m, x: m.mha(x, x, x, attn_mask=x)[0], mha=nn.MultiheadAttention(4, 2)),
        (3, 4),
        "module 'mha' is called with attn_mask",
    ),
    "joined samples": (
        Computed(lambda m, x: torch.cat([m.fc(x), x]), fc=nn.Linear(4, 4)),
        (4,),
        "node 'cat' concatenates along dim 0, but must not along the batch; join",
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


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("module", "shape", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_followed_is_an_error_that_names_it_and_the_remedy(
    module: nn.Module, shape: tuple[int, ...], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        trace(module, torch.zeros(1, *shape))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------- what a replacement must not lose


def test_what_is_not_to_be_trained_stays_so() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(2), nn.Linear(4, 6), nn.TransformerEncoderLayer(6, 2, 8))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("0." not in name and "self_attn" not in name)
    with torch.no_grad():  # views made here need no gradient, whatever they are views of
        network = Network(module, torch.zeros(1, 2, 4, 4))
    trained = {name: parameter.requires_grad for name, parameter in network.module.named_parameters()}
    assert {name for name, needed in trained.items() if not needed} == {
        *("0.weight", "0.bias"),
        *(f"4.attention.{layer}.{leaf}" for layer in ["q", "k", "v", "out"] for leaf in ("weight", "bias")),
    }


@pytest.mark.parametrize("change", ["weight norm", "spectral norm", "masks", "hook"])
def test_a_layer_that_is_more_than_its_tensors_is_refused(change: str) -> None:
    layer = nn.Linear(4, 3)
    if change == "weight norm":
        torch.nn.utils.parametrizations.weight_norm(layer)
    elif change == "spectral norm":
        torch.nn.utils.spectral_norm(layer)
    elif change == "masks":
        prune.random_unstructured(layer, "weight", 0.5)
    else:
        layer.register_forward_hook(lambda *_: None)
    what = "a parametrization" if change == "weight norm" else "hooks"
    with pytest.raises(TraceError, match=rf"module '0' has {what}.*, which its replacement would lose, but must have none; "):
        trace(nn.Sequential(layer, nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 4))


def test_a_layer_may_read_the_columns_of_a_parameter_which_then_are_fixed() -> None:
    module = Computed(lambda self, x: self.head(torch.relu(self.body(x) @ self.mix)), body=nn.Linear(4, 5), head=nn.Linear(3, 2))
    module.mix = nn.Parameter(torch.randn(5, 3))
    x = torch.randn(6, 4)
    network = Network(module, x[:1])
    torch.testing.assert_close(network(x), module(x))
    network.remove_units("body", [2])
    module.mix.data[2] = 0
    torch.testing.assert_close(network(x), module(x))
    assert network.topology.space("mix").role == "input"


def test_sizes_given_by_name_follow_as_well() -> None:
    module = Computed(
        lambda self, x: self.head(torch.reshape(self.conv(x), shape=(-1, 16))), conv=nn.Conv2d(2, 4, 3), head=nn.Linear(16, 2)
    )
    x = torch.randn(3, 2, 4, 4)
    network = Network(module, x[:1])
    torch.testing.assert_close(network(x), module(x))
    network.remove_units("conv", [1])
    assert network(x).shape == (3, 2)


# ---------------------------------------------------------------------- common operators beyond layers and sums

COMMON = {
    "logarithm of softmax": lambda m, x: torch.log_softmax(m.head(torch.relu(m.body(x))), 1),
    "logarithm of softmax as a function": lambda m, x: nn.functional.log_softmax(m.head(m.body(x).tanh()), dim=1),
    "gated by a function": lambda m, x: m.head(nn.functional.glu(torch.cat([m.body(x), m.side(x)], 1), 1)),
    "maximum of two": lambda m, x: m.head(torch.maximum(m.body(x), m.side(x))),
    "maximum over units": lambda m, x: m.head(m.body(x) - m.body_max(m.side(x)).max(1, keepdim=True)[0]),
    "least over units": lambda m, x: m.head(m.body(x) - m.side(x).min(dim=1)[0].unsqueeze(1)),
    "chosen by sign": lambda m, x: m.head(torch.where(m.body(x) > 0, m.side(x), -m.side2(x))),
    "expanded": lambda m, x: m.head(m.side(x) * m.body(x).mean(1, keepdim=True).expand_as(m.side2(x))),
    "in place": lambda m, x: m.head(m.body(x).relu_()),
    "slopes": lambda m, x: m.head(m.slope(m.body(x)) + m.slopes(m.side(x))),
}


def common(compute: Callable[[Computed, Tensor], Tensor]) -> Computed:
    torch.manual_seed(0)
    layers = {name: nn.Linear(4, 6) for name in ("body", "side", "side2")}
    return Computed(compute, **layers, head=nn.Linear(6, 3), body_max=nn.Identity(), slope=nn.PReLU(), slopes=nn.PReLU(6)).double()


@pytest.mark.parametrize("compute", COMMON.values(), ids=COMMON)
def test_common_operators_are_followed(compute: Callable[[Computed, Tensor], Tensor]) -> None:
    """The network equals its module; units in another order change nothing; without some it equals its own export."""
    x = torch.randn(5, 4, dtype=torch.float64)
    module = common(compute)
    nn.init.uniform_(module.slopes.weight)
    network = Network(module, x[:1])
    torch.testing.assert_close(network(x), module(x))
    for space in network.topology.hidden:
        shuffled = copy.deepcopy(network)
        moves = Moves({space.name: np.random.default_rng(0).permutation(space.units)}, {})
        for name, tensor in [*shuffled.module.named_parameters(), *shuffled.module.named_buffers()]:
            if name in shuffled.axes:
                tensor.data = reindex(tensor.data, shuffled.axes[name], moves, network.topology.units)
        torch.testing.assert_close(shuffled(x), network(x))
        network.remove_units(space.name, [1, 3])
    network(x).sum().backward()
    torch.testing.assert_close(plain(network)(x), network(x))


@pytest.mark.parametrize(("padding", "dilation"), [("same", 1), ("same", 2), ("valid", 1)])
def test_padding_may_be_given_by_name(padding: str, dilation: int) -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, (3, 5), padding=padding, dilation=dilation), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(2, 2, 12, 12)
    module(x)
    torch.testing.assert_close(Network(module, x[:1])(x), module(x))


def test_a_layer_as_a_function_is_refused_with_the_module_to_use() -> None:
    module = Computed(lambda m, x: nn.functional.linear(x, m.head.weight), head=nn.Linear(4, 2))
    for shape in ((4,), (3, 4)):  # of a sequence it is not known yet which dimension is one of units
        with pytest.raises(TraceError, match=r"node 'linear' is functional.linear, but must be a module; use nn.Linear"):
            trace(module, torch.zeros(1, *shape))
