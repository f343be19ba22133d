"""torch.compile and autocast over whole networks, with every kernel."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from grow.editing.insertion import Insertion
from grow.evidence import gather
from grow.kernels import KERNELS, blocks, compiled
from grow.layers import SparseLinear
from grow.network import Network
from grow.watch import uncompiled

# torch's compiler makes an object that torch itself warns of.
pytestmark = pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be instantiated:DeprecationWarning")

X = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch.compiler.reset()


def network(kernel: str, drop: int = 2) -> Network:
    """A convolution and two linear layers, with every ``drop``-th connection gone."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    made = Network(module, X[:1])
    made.prune_connections({layer.layer: np.arange(0, layer.possible, drop) for layer in made.topology.layers})
    made.use_kernels(lambda case: "csr" if kernel in case.unfit else kernel, len(X))
    return made


def ring(kernel: str) -> Network:
    """Two layers in which every unit reads its own place and the one before."""
    torch.manual_seed(0)
    made = Network(nn.Sequential(nn.Flatten(), nn.Linear(72, 72), nn.ReLU(), nn.Linear(72, 72)), X[:1])
    places = np.arange(72)
    positions = np.sort(np.concatenate([places * 72 + places, places * 72 + (places - 1) % 72]))
    made.set_connections({"1": positions, "3": positions})
    made.use_kernels(lambda case: kernel, len(X))
    return made


def results(made: Network, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Output and all gradients."""
    made.zero_grad()
    x = X.clone().requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        y = made(x)
    y.float().square().sum().backward()
    gradients = [parameter.grad for parameter in made.parameters() if parameter.grad is not None]
    assert x.grad is not None
    assert len(gradients) == len(list(made.parameters()))
    return [y.detach(), x.grad, *(gradient.clone() for gradient in gradients)]


def assert_as_uncompiled(made: Network) -> None:
    found = results(made)
    with uncompiled(made):
        expected = results(made)
    torch.testing.assert_close(found, expected)


def counting(graphs: list[fx.GraphModule]) -> Callable[[fx.GraphModule, list[Tensor]], fx.GraphModule]:
    """A backend that computes every graph as it was traced, and keeps it."""

    def backend(graph: fx.GraphModule, _: list[Tensor]) -> fx.GraphModule:
        graphs.append(graph)
        return graph

    return backend


@pytest.mark.parametrize("kernel", ["radix", "condensed"])
def test_a_compiled_ring_is_one_graph(kernel: str) -> None:
    made = ring(kernel)
    made.compile(backend="eager", fullgraph=True)
    assert {layer.kernel for layer in made.layers.values()} == {kernel}
    assert_as_uncompiled(made)
    assert made.double()(X.double()).dtype == torch.float64  # with products that are prepared anew, outside of the graph


@pytest.mark.parametrize(
    "kernel", ["compiled", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dense", "csr", "columns", "block_16"))]
)
def test_a_compiled_network_is_one_graph_and_follows_every_edit(kernel: str) -> None:
    made = network(kernel)
    made.compile(backend="eager", fullgraph=True)
    assert_as_uncompiled(made)
    made.grow_connections({"0": np.array([0, 4]), "3": np.array([0, 2, 4])})
    made.remove_units("0", [1])
    made.remove_units("3", [2, 3])
    assert_as_uncompiled(made)


def test_one_graph_serves_all_numbers_of_connections() -> None:
    graphs: list[fx.GraphModule] = []
    made = network("csr")
    made.compile(backend=counting(graphs), fullgraph=True)
    for drop in range(2, 6):
        made.set_connections({"0": np.arange(0, 72, drop), "3": np.arange(0, 128, drop), "5": np.arange(0, 24, drop)})
        assert_as_uncompiled(made)
    assert len(graphs) == 2  # one for the first numbers, one for all


@torch._dynamo.config.patch(recompile_limit=2)
def test_any_number_of_networks_and_edits_of_units_is_compiled() -> None:
    """However few torch itself would compile before it gives up."""
    graphs: list[fx.GraphModule] = []
    for _ in range(2):
        made = network("dense")
        made.compile(backend=counting(graphs), fullgraph=True)
        before = len(graphs)
        for autocast in (None, torch.bfloat16):
            results(made, autocast)
        assert len(graphs) >= before + 2
    made.remove_units("3", [2])
    assert_as_uncompiled(made)


def test_a_compiled_network_follows_new_layers_and_other_kernels() -> None:
    made = network("csr")
    made.compile(backend="eager")
    assert_as_uncompiled(made)
    made.insert_layer(Insertion("3", "extra", "identity"))
    made.use_kernels(lambda case: "dense" if case.convolution else "columns", len(X))
    assert_as_uncompiled(made)


@torch.no_grad()
def test_torch_compile_itself_breaks_the_graph_where_a_product_is_prepared_and_says_how_not_to() -> None:
    made = network("csr")
    torch.testing.assert_close(torch.compile(made, backend="eager")(X), made(X))
    made.set_connections({"3": np.arange(9)})  # prepared anew, which the first call did without a word
    torch.compiler.reset()
    with pytest.raises(Exception, match=r"call network\.compile\(\) in place of torch\.compile\(network\)"):
        torch.compile(made, backend="eager", fullgraph=True)(X)


def test_evidence_is_gathered_without_the_compiled_code_and_copies_have_none() -> None:
    made, batches = network("dense"), [(X, torch.tensor([0, 1, 2, 0, 1]))]

    def curvature() -> list[Tensor]:
        found = gather(made, batches, functional.cross_entropy, frozenset({"curvature"}), torch.Generator().manual_seed(0))
        return [found.layer(name)["curvature"] for name in made.layers]

    expected = curvature()
    made.compile(backend="eager")
    made.eval()(X)
    torch.testing.assert_close(curvature(), expected, rtol=0, atol=0)
    assert copy.deepcopy(made)._compiled_call_impl is None


def test_the_operators_of_csr_keep_the_contract_of_operators() -> None:
    starts, indices = torch.tensor([0, 2, 2, 3], dtype=torch.int32), torch.tensor([0, 1, 1], dtype=torch.int32)  # (3, 2)
    values, features, upstream = torch.tensor([1.0, 2.0, 3.0]), torch.randn(2, 4), torch.randn(3, 4)
    torch.library.opcheck(torch.ops.grow.csr_product.default, (values, starts, indices, 3, features))
    torch.library.opcheck(torch.ops.grow.csr_sampled.default, (values, starts, indices, upstream, features))


def test_the_operators_of_the_compiled_kernel_keep_the_contract_of_operators() -> None:
    structure = compiled.Structure.of(torch.tensor([0, 1, 5]), (3, 2))
    values, bias, x, upstream = torch.tensor([1.0, 2.0, 3.0]), torch.ones(3), torch.randn(4, 2), torch.randn(4, 3)
    torch.library.opcheck(torch.ops.grow.compiled_output.default, (x, values, bias, structure.tensors(), 3, 2))
    for needed in ((True, True, True), (True, False, False), (False, True, False)):
        arguments = (x, values, upstream, structure.tensors(), 3, 2, *needed)
        torch.library.opcheck(torch.ops.grow.compiled_gradients.default, arguments)


@pytest.mark.parametrize("cores", [False, True], ids=["torch", "triton"])
def test_the_operators_of_blocks_keep_the_contract_of_operators(cores: bool) -> None:
    if cores:
        pytest.importorskip("triton")
    of = blocks.Blocks.of(torch.arange(20 * 18), (20, 18), 16)
    entries, bias, x, upstream = torch.randn(len(of.rows) * 256), torch.randn(20), torch.randn(5, 18), torch.randn(5, 20)
    torch.library.opcheck(torch.ops.grow.block_output.default, (x, entries, bias, of.row_starts, of.columns, 16, 20, cores))
    arguments = (upstream, entries, of.row_starts, of.rows, of.columns, of.column_starts, of.order, 16, 18, cores)
    torch.library.opcheck(torch.ops.grow.block_input_gradient.default, arguments)
    torch.library.opcheck(
        torch.ops.grow.block_weight_gradient.default, (x, upstream, entries, of.row_starts, of.rows, of.columns, 16, cores)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of torch's older compiler, which the new one imports
@pytest.mark.parametrize("kernel", ["csr", "compiled", "block_16"])
def test_machine_code_of_a_compiled_network_agrees_through_edits(kernel: str) -> None:
    made = network(kernel)
    made.compile(fullgraph=True)
    assert_as_uncompiled(made)
    made.prune_connections({"3": np.arange(1, 64, 4)})
    made.remove_units("3", [2])
    assert_as_uncompiled(made)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("kernel", ["radix", "condensed"])
def test_machine_code_of_a_compiled_ring_agrees(kernel: str) -> None:
    made = ring(kernel)
    made.compile(fullgraph=True)
    assert_as_uncompiled(made)


@pytest.mark.parametrize("kernel", KERNELS)
def test_autocast_gives_the_results_in_bfloat16_as_near_as_a_dense_network_does(kernel: str) -> None:
    exact, found, dense = results(network(kernel)), results(network(kernel), torch.bfloat16), results(network("dense"), torch.bfloat16)
    assert found[0].dtype == dense[0].dtype == torch.bfloat16
    assert {gradient.dtype for gradient in found[1:]} == {torch.float32}
    for ours, truth in zip(found, exact, strict=True):
        assert (ours - truth).norm() < 2**-6 * truth.norm()  # bfloat16 rounds by up to 2^-9, four layers forwards and backwards


def test_autocast_computes_in_float32_where_a_kernel_does_not_know_its_dtype() -> None:
    layer = network("csr").layers["3"]
    x = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert torch.equal(found, layer(x).bfloat16())  # rounded once, at the end


def test_autocast_leaves_float64_alone() -> None:
    layer = network("csr").double().layers["3"]
    x = torch.randn(7, 16, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x))
        assert layer(x).dtype == torch.float64


def test_a_compiled_network_may_be_autocast() -> None:
    made = network("csr")
    expected = results(made, torch.bfloat16)
    made.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(results(made, torch.bfloat16), expected)


def test_a_weight_in_a_dtype_that_its_kernel_does_not_know_is_refused_by_name() -> None:
    layer = network("csr").layers["3"]
    assert isinstance(layer, SparseLinear)
    message = (
        r"dtype of the weight is torch\.bfloat16, but must be one of torch\.float32, torch\.float64 for kernel 'csr'; use another kernel"
    )
    with pytest.raises(ValueError, match=message):
        layer.bfloat16()(torch.zeros(2, 16, dtype=torch.bfloat16))
