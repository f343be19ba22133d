"""Every kind of edit on every kind of network: what must stay stays, and all goes on: training, checkpoint, export."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from grow import checkpoint, evidence
from grow.axes import ConnectionsAxis, IntArray, Moves, reindex
from grow.editing.insertion import Insertion
from grow.editing.units import Births, Lines, Merge
from grow.export import plain
from grow.layers import expand
from grow.network import Network
from grow.seeds import SEEDS
from hardware.execute.exchange import Peers
from hardware.shard import shard
from hardware.workload import Workload
from studies import vision
from tests.contracts.modules import NETWORKS, Sample
from tests.grow.test_network import assert_sound, attached, outputs, some, train

CHAINS = ("vgg11", "alexnet")
"""Long chains of what the samples of the other tests consist of as well: they are left to the long run."""
every_network = pytest.mark.parametrize(
    "sample", [pytest.param(sample, id=name, marks=[pytest.mark.slow] * (name in CHAINS)) for name, sample in NETWORKS.items()]
)
EXACT = {"rtol": 1e-8, "atol": 1e-8}


def spread(network: Network, name: str, tensor: Tensor) -> Tensor:
    """A tensor shaped like a parameter, in the parameter's dense shape."""
    layer = network.layers.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
    whole = layer is None or layer.storage == "dense" or tensor.dim() == 0  # a count of steps has no shape
    return tensor if whole else expand(tensor, layer.positions, layer.weight_shape)


def state(network: Network, optimizer: torch.optim.Optimizer) -> dict[tuple[str, str], Tensor]:
    """Every parameter, its gradient and its optimizer state in dense shapes, and every buffer that does not count units."""
    found = {}
    for name, parameter in network.module.named_parameters():
        held = {"value": parameter.detach(), **optimizer.state[parameter]} | ({} if parameter.grad is None else {"grad": parameter.grad})
        found |= {(name, key): spread(network, name, value).clone() for key, value in held.items()}
    buffers = {name: buffer for name, buffer in network.module.named_buffers() if name in network.axes}
    return found | {(name, "value"): buffer.clone() for name, buffer in buffers.items()}


def assert_survivors(
    network: Network,
    before: dict[tuple[str, str], Tensor],
    after: dict[tuple[str, str], Tensor],
    space: str,
    moves: IntArray,
    units: dict[str, int],
) -> None:
    """What belongs to units that stayed is what it was, bit for bit; ``moves`` gives the old unit of every new one."""
    for (name, key), value in before.items():
        axes = network._axes[name]
        if value.dim() == len(axes) and value.dim():
            assert not any(isinstance(axis, ConnectionsAxis) for axis in axes)
            assert torch.equal(after[name, key], reindex(value, axes, Moves({space: moves}, {}), units)), (name, key)
        else:
            assert torch.equal(after[name, key], value)


# ---------------------------------------------------------------------- tracing


@pytest.mark.parametrize("sample", NETWORKS.values(), ids=NETWORKS)
def test_a_network_computes_what_its_module_computes_in_both_modes(sample: Sample) -> None:
    module = sample.build().double()
    x = sample.inputs()
    network = Network(module, x[:1])
    for training in (False, True):
        torch.manual_seed(0)
        expected = module.train(training)(x)
        torch.manual_seed(0)  # AlexNet has dropout
        torch.testing.assert_close(network.train(training)(x), expected, rtol=1e-10, atol=1e-10)


def test_the_start_networks_have_the_sizes_of_their_papers() -> None:
    with torch.device("meta"):
        sizes = {build.__name__: sum(p.numel() for p in build().parameters()) for build in (vision.vgg11, vision.alexnet, vision.resnet18)}
    assert sizes == {"vgg11": 9_228_362, "alexnet": 61_100_840, "resnet18": 11_173_962}


def test_a_residual_stream_is_one_space_through_all_blocks() -> None:
    network = Network(vision.resnet((3, 4), 2), torch.zeros(1, 3, 8, 8))
    assert [layer.layer for layer in network.topology.producers("0")] == ["0", "3.conv2", "4.conv2"]
    assert [layer.layer for layer in network.topology.producers("5.conv2")] == ["5.conv2", "5.shortcut.0", "6.conv2"]


def test_a_dense_block_reads_every_space_before() -> None:
    axes = NETWORKS["densenet"].network().axes
    assert [segment.space for segment in axes["4.weight"][1]] == ["0", "1.convs.0", "1.convs.1"]


def test_the_spaces_of_transformers_are_the_stream_the_heads_and_the_hidden_units() -> None:
    for name, stream, block in (("vision transformer", "patches", "encoder.layers.0"), ("sequence transformer", "embedding", "blocks.0")):
        topology = NETWORKS[name].network().topology
        heads = f"{block}.attention.heads" if name == "vision transformer" else f"{block}.heads"
        assert {space.name: space.units for space in topology.hidden} == {stream: 6, heads: 2, f"{block}.fc1": 24}
        assert topology.space(stream).fed
        assert [space.name for space in topology.spaces if space.mixed] == [stream]


# ---------------------------------------------------------------------- edits of units, one at a time


@every_network
def test_splitting_adding_and_merging_units_leave_the_output(sample: Sample) -> None:
    """But for the units of a norm across units: there one more or less changes what all others are divided by."""
    network, x = sample.network(kernel="csr"), sample.inputs()
    optimizer = attached(network, "adam")
    network.prune_connections(some(network, 0.1))
    train(network, optimizer, x, 1)
    for space in network.topology.hidden:
        before = outputs(network, x)
        network.split_units(space.name, [0])
        network.add_units(space.name, 1, torch.Generator().manual_seed(0), fan_in=3, fan_out=2)
        if space.mixed:
            assert not torch.allclose(outputs(network, x), before)
            continue
        torch.testing.assert_close(outputs(network, x), before, **EXACT)
        network.merge_units(space.name, [Merge(space.units, {0: 1.0})])
        torch.testing.assert_close(outputs(network, x), before, **EXACT)
    train(network, optimizer, x, 1)
    assert_sound(network, optimizer)


@every_network
def test_removing_units_keeps_every_byte_of_all_others(sample: Sample) -> None:
    network, x = sample.network(), sample.inputs()
    optimizer = attached(network, "adamw")
    train(network, optimizer, x, 2)
    for space in network.topology.hidden:
        before, units = state(network, optimizer), dict(network.topology.units)
        network.remove_units(space.name, [0])
        assert_survivors(network, before, state(network, optimizer), space.name, np.arange(1, space.units), units)
    train(network, optimizer, x, 1)
    assert_sound(network, optimizer)


@every_network
def test_a_unit_that_nobody_reads_can_go_without_a_trace(sample: Sample) -> None:
    """Removal equals the network in which nothing leads out of the unit. Not so in a norm across units, which reads them all."""
    network, x = sample.network(), sample.inputs()
    for space in network.topology.hidden:
        if space.mixed:
            continue
        for layer in network.topology.consumers(space.name):
            segments, units, _ = network.topology.connected_units(layer, layer.positions())
            inside = np.array([segment.space == space.name for segment in layer.reads])[segments]
            network.prune_connections({layer.layer: layer.positions()[inside & (units == 1)]})
        before = outputs(network, x)
        network.remove_units(space.name, [1])
        torch.testing.assert_close(outputs(network, x), before, **EXACT)


@every_network
def test_units_born_with_given_weights_and_none_outgoing_leave_the_output(sample: Sample) -> None:
    network, x = sample.network(), sample.inputs()
    for space in network.topology.hidden:
        if space.mixed:
            continue
        before, generator = outputs(network, x), torch.Generator().manual_seed(0)
        incoming = {}
        for layer in network.topology.producers(space.name):
            rows = sum(segment.repeat for segment in layer.target if segment.space == space.name)
            incoming[layer.layer] = Lines(torch.randn(rows, *layer.shape[1:], generator=generator, dtype=torch.float64))
        network.insert_units(space.name, Births(1, incoming, {}))
        torch.testing.assert_close(outputs(network, x), before, **EXACT)


@every_network
def test_a_layer_inserted_where_it_may_be_leaves_the_output_and_is_exported(sample: Sample) -> None:
    network, x = sample.network(), sample.inputs()
    optimizer = attached(network, "adam")
    before, inserted = outputs(network, x), 0
    for number, space in enumerate(network.topology.hidden):
        try:
            network.insert_layer(Insertion(space.name, f"new{number}", "residual", units=2, fan_in=2, fan_out=1))
            inserted += 1
        except ValueError as error:
            assert any(reason in str(error) for reason in ("goes several ways", "several rows a unit"))  # noqa: PT017 - the rules of places
        torch.testing.assert_close(outputs(network, x), before, **EXACT)
    train(network, optimizer, x, 1)
    assert_sound(network, optimizer)
    torch.testing.assert_close(plain(network.eval())(x), outputs(network, x), **EXACT)
    assert inserted or sample is NETWORKS["normed"]


# ---------------------------------------------------------------------- oracle, checkpoint, export


@every_network
def test_outputs_and_gradients_are_those_of_the_dense_module_with_zeros(sample: Sample) -> None:
    network, x = sample.network(kernel="csr"), sample.inputs()
    network.prune_connections(some(network, 0.4))
    network.eval()
    oracle = plain(network)
    expected = oracle(x)
    torch.testing.assert_close(network(x), expected, **EXACT)
    network(x).square().sum().backward()
    expected.square().sum().backward()
    dense = dict(oracle.named_parameters())
    for layer in network.topology.layers:
        found = spread(network, f"{layer.layer}.weight", network.layers[layer.layer].weight.grad)
        kept = torch.from_numpy(layer.positions())
        torch.testing.assert_close(found.reshape(-1)[kept], dense[f"{layer.layer}.weight"].grad.reshape(-1)[kept], **EXACT)
    for name, parameter in network.module.named_parameters():
        if name.removesuffix(".weight") not in network.layers:
            torch.testing.assert_close(parameter.grad, dense[name].grad, **EXACT)


@every_network
def test_evidence_has_the_dense_gradient_of_every_layer(sample: Sample) -> None:
    network, x = sample.network(kernel="csr"), sample.inputs()
    network.prune_connections(some(network, 0.4))
    y = torch.arange(len(x)) % 3
    found = evidence.gather(network, [(x, y)], cross_entropy, frozenset({"gradient", "hutchinson"}), torch.Generator().manual_seed(0))
    oracle = plain(network.eval())
    cross_entropy(oracle(x), y).backward()
    for name in network.layers:
        torch.testing.assert_close(found.layer(name)["gradient"], oracle.get_parameter(f"{name}.weight").grad, **EXACT)
        assert found.layer(name)["hutchinson"].isfinite().all()


@every_network
def test_every_seed_fits_every_network(sample: Sample) -> None:
    for seed in SEEDS.values():
        network, x = sample.network(), sample.inputs(samples=2)
        structure = seed(network.topology, 0.4, np.random.default_rng(0))
        for space, units in structure.units.items():
            network.remove_units(space, np.arange(units, network.topology.units[space]))
        network.set_connections(structure.index)
        assert outputs(network, x).isfinite().all()


@every_network
def test_one_device_computes_every_network(sample: Sample) -> None:
    network, x = sample.network(kernel="csr"), sample.inputs()
    network.prune_connections(some(network, 0.4))
    network.eval()
    torch.testing.assert_close(shard(network, "single", Peers(0, 1)).module(x), network(x), **EXACT)
    assert sum(layer.connections for layer in Workload.of(network.topology).layers) == network.topology.connections


def edited(network: Network, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    network.prune_connections(some(network, 0.2))
    train(network, optimizer, x, 1)
    for space in network.topology.hidden:
        network.split_units(space.name, [1])
        network.remove_units(space.name, [0])
    network.use_kernels(lambda case: ("dense", "csr")[case.rows % 2], 8)
    train(network, optimizer, x, 1)


@every_network
def test_a_checkpoint_of_an_edited_network_goes_on_as_if_nothing_had_been(sample: Sample, tmp_path: Path) -> None:
    network, x = sample.network(), sample.inputs()
    optimizer = attached(network, "adam")
    edited(network, optimizer, x)
    checkpoint.save(tmp_path / "0", network, optimizer)
    fresh = sample.network(seed=1)
    other = attached(fresh, "adam")
    checkpoint.restore(fresh, checkpoint.read(tmp_path / "0"), other)
    for trained, steps in ((network, optimizer), (fresh, other)):
        torch.manual_seed(0)  # AlexNet has dropout
        train(trained, steps, x, 2)
    assert torch.equal(outputs(network, x), outputs(fresh, x))


@every_network
def test_an_exported_network_is_torchs_alone_and_gives_the_same(sample: Sample) -> None:
    network, x = sample.network(), sample.inputs()
    optimizer = attached(network, "sgd")
    edited(network, optimizer, x)
    expected = outputs(network, x)
    module = plain(network.eval())
    torch.testing.assert_close(module(x), expected, **EXACT)
    assert not [type(child) for child in module.modules() if type(child).__module__.partition(".")[0] == "grow"]
    for layer in network.topology.layers:
        weight = module.get_parameter(f"{layer.layer}.weight").detach().reshape(-1)
        assert not weight[np.setdiff1d(np.arange(layer.possible), layer.positions())].any()
    with torch.no_grad():
        next(module.parameters()).add_(1)
    assert torch.equal(outputs(network, x), expected)


@pytest.mark.parametrize("name", [pytest.param("mobilenet", marks=pytest.mark.slow), "sequence transformer"])
def test_an_exported_network_can_be_exported_by_torch(name: str) -> None:
    sample = NETWORKS[name]
    network, x = sample.network(), sample.inputs()
    edited(network, attached(network, "sgd"), x)
    program = torch.export.export(plain(network.eval()), (x,))
    torch.testing.assert_close(program.module()(x), outputs(network, x), **EXACT)


# ---------------------------------------------------------------------- any sequence of edits


EDITS = ("grow", "prune", "add", "remove", "split", "merge", "unconnected", "kernels")


def carry_out(network: Network, edit: str, space: str, seed: int) -> None:
    units = network.topology.units[space]
    generator = torch.Generator().manual_seed(seed)
    match edit:
        case "grow":
            network.grow_connections(some(network, 0.5, existing=False, seed=seed))
        case "prune":
            network.prune_connections(some(network, 0.2, seed=seed))
        case "add":
            network.add_units(space, 1 + seed % 2, generator, fan_in=1 + seed % 3, fan_out=1 + seed % 2)
        case "remove":
            network.remove_units(space, [seed % units])
        case "split":
            network.split_units(space, [seed % units])
        case "merge":
            network.split_units(space, [seed % units])
            network.merge_units(space, [Merge(units, {seed % units: 1.0})])
        case "unconnected":
            network.remove_unconnected_units()
        case "kernels":
            network.use_kernels(lambda case: ("dense", "csr")[(case.rows + seed) % 2], 8)


def preserves(network: Network, edit: str, space: str) -> bool:
    """Whether an edit must leave the output: growth with zero weights does, more units do unless a norm spans them."""
    if edit in ("add", "split", "merge"):
        return not network.topology.space(space).mixed
    return edit not in ("prune", "remove")


def sequence_of_edits(sample: Sample, name: str, edits: list[tuple[str, int]]) -> None:
    network, x = sample.network(), sample.inputs(samples=3)
    optimizer = attached(network, name)
    for edit, seed in edits:
        space = network.topology.hidden[seed % len(network.topology.hidden)].name
        before, kept, fixed = outputs(network, x), state(network, optimizer), preserves(network, edit, space)
        try:
            carry_out(network, edit, space, seed)
        except ValueError as error:
            assert "must keep at least 1" in str(error)  # noqa: PT017 - the only rule that a drawn edit can break
            assert all(torch.equal(value, kept[key]) for key, value in state(network, optimizer).items())
        if fixed:
            torch.testing.assert_close(outputs(network, x), before, rtol=1e-6, atol=1e-8)
        assert_sound(network, optimizer)
        train(network, optimizer, x, 1)
        assert all(bool(parameter.isfinite().all()) for parameter in network.parameters())
    saved = checkpoint.capture(network, optimizer)
    fresh = sample.network(seed=1)
    checkpoint.restore(fresh, saved, attached(fresh, name))
    assert torch.equal(outputs(fresh, x), outputs(network, x))
    torch.testing.assert_close(plain(network.eval())(x), outputs(network, x), **EXACT)


some_edits = st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, 50)), min_size=1, max_size=5)


@every_network
@settings(max_examples=2, deadline=None, derandomize=True)
@given(name=st.sampled_from(("sgd", "adam", "rmsprop")), edits=some_edits)
def test_after_a_few_edits_everything_goes_on(sample: Sample, name: str, edits: list[tuple[str, int]]) -> None:
    sequence_of_edits(sample, name, edits)


@pytest.mark.slow
@every_network
@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(("sgd", "adam", "adamw", "rmsprop")),
    edits=st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, 50)), min_size=1, max_size=9),
)
def test_after_any_sequence_of_edits_everything_goes_on(sample: Sample, name: str, edits: list[tuple[str, int]]) -> None:
    sequence_of_edits(sample, name, edits)
