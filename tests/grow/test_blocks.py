"""Block-sparse products: by torch, and by Triton's kernels, in its interpreter where there is no GPU."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from grow.kernels import KERNELS, Kernel
from grow.kernels.blocks import SIZES, Blocks, prepare
from tests.contracts.kernel import KernelContract


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def positions_of(shape: tuple[int, int], size: int, full: bool = True) -> Tensor:
    """Every other block of a weight, on a chequered board; where not full, without some of their connections."""
    rows, columns = torch.meshgrid(*(torch.arange(length) for length in shape), indexing="ij")
    live = (rows // size + columns // size) % 2 == 0
    if not full:
        live &= (rows * 7 + columns) % 5 != 0
    return live.flatten().nonzero()[:, 0]


def results(
    shape: tuple[int, int], positions: Tensor, size: int, dtype: torch.dtype, cores: bool | None, device: str = "cpu"
) -> list[Tensor]:
    """Output and all gradients, as float64; without cores (None) those of the masked dense product in float64."""
    x, values, bias = (drawn(*s, seed=n, dtype=dtype) for n, s in enumerate(((150, shape[1]), (len(positions),), (shape[0],))))
    upstream = drawn(150, shape[0], seed=3, dtype=dtype)
    leaves = [leaf.to(device, torch.float64 if cores is None else dtype).requires_grad_() for leaf in (x, values, bias)]
    if cores is None:
        weight = leaves[0].new_zeros(shape[0] * shape[1]).index_put((positions.to(device),), leaves[1]).reshape(shape)
        y = torch.nn.functional.linear(leaves[0], weight, leaves[2])
    else:
        y = prepare(positions.to(device), shape, size, cores)(*leaves)
    y.backward(upstream.to(y))
    return [found.detach().cpu().double() for found in (y, *(leaf.grad for leaf in leaves if leaf.grad is not None))]


class TestByTorch(KernelContract):
    @pytest.fixture(params=SIZES)
    def kernel(self, request: pytest.FixtureRequest) -> Kernel:
        return KERNELS[f"block_{request.param}"]


class TestInTriton(KernelContract):
    wide = (24, 20), tuple(range(0, 24 * 20, 7))  # the interpreter takes a thousand times longer than a GPU

    @pytest.fixture
    def kernel(self) -> Kernel:
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("Triton computes on the GPU, where the tests marked gpu are")
        listed = KERNELS["block_16"]
        return Kernel(listed.name, listed.storage, listed.dtypes, partial(prepare, size=16, cores=True))


def test_entries_of_full_blocks_are_the_values_themselves() -> None:
    blocks, values = Blocks.of(positions_of((48, 32), 16), (48, 32), 16), torch.zeros(3 * 256)
    assert blocks.slots is None
    assert blocks.spread(values) is values
    assert (blocks.row_starts.tolist(), blocks.columns.tolist()) == ([0, 1, 2, 3], [0, 1, 0])
    assert (blocks.column_starts.tolist(), blocks.order.tolist()) == ([0, 2, 3], [0, 2, 1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cores", [False, True], ids=["torch", "triton"])
def test_sums_are_at_least_as_exact_as_their_dtype(dtype: torch.dtype, cores: bool) -> None:
    if cores:
        pytest.importorskip("triton")
    shape, positions = (70, 100), positions_of((70, 100), 32, full=False)  # ragged edges, blocks with holes, two tiles of the batch
    expected = results(shape, positions, 32, dtype, None)
    # The interpreter rounds to bfloat16 towards zero: twice as far as a GPU does.
    for found, truth in zip(results(shape, positions, 32, dtype, cores), expected, strict=True):
        assert (found - truth).norm() < 2 * torch.finfo(dtype).eps * truth.norm()


@pytest.mark.parametrize("size", SIZES)
def test_a_weight_that_no_block_fills_is_computed_in_every_size(size: int) -> None:
    pytest.importorskip("triton")
    shape, positions = (70, 66), torch.from_numpy(np.sort(np.random.default_rng(0).choice(70 * 66, 60, replace=False)))
    expected = results(shape, positions, size, torch.float64, None)
    for cores in (False, True):
        torch.testing.assert_close(results(shape, positions, size, torch.float64, cores), expected, rtol=1e-12, atol=1e-12)


def test_a_layer_without_positions_is_refused() -> None:
    with pytest.raises(
        ValueError, match="kernel 'block_16' was given no positions, but needs the layer's connections; store the layer comp"
    ):
        KERNELS["block_16"].prepare(None, (3, 4))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "unit"), [("bf16", "bf16.bf16"), ("fp32", "tf32.tf32"), ("fp64", "f64.f64")])
def test_the_machine_code_for_a_gpu_multiplies_on_its_tensor_cores(capability: int, dtype: str, unit: str) -> None:
    """Compiled for a GPU without one at hand."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    from grow.kernels import tensor_cores

    sums = triton.language.float64 if dtype == "fp64" else triton.language.float32
    constants = {"size": 32, "tile": 128, "summed": 64, "biased": True, "precision": "tf32", "widen": False, "sums": sums}
    indices = {"row_starts", "rows", "columns", "column_starts", "order"}
    for kernel in (tensor_cores._output, tensor_cores._input_gradient, tensor_cores._weight_gradient):
        function = JITFunction(kernel.fn)
        names = function.arg_names
        first_size = names.index("batch")
        kinds = {
            name: "constexpr" if name in constants else "*i32" if name in indices else f"*{dtype}" if number < first_size else "i32"
            for number, name in enumerate(names)
        }
        given = {(names.index(name),): constants[name] for name in names if name in constants}
        aligned = {(number,): [["tt.divisibility", 16]] for number, name in enumerate(names) if name not in constants}
        code = triton.compile(ASTSource(function, kinds, given, aligned), target=GPUTarget("cuda", capability, 32))
        products = [line.split()[0] for line in code.asm["ptx"].splitlines() if "mma" in line.split(" ")[0] or "mma." in line]
        assert any(unit in product for product in products)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("full", [True, False])
def test_a_gpu_computes_the_masked_dense_product(dtype: torch.dtype, size: int, full: bool) -> None:
    shape = (256, 192) if full else (250, 190)
    positions = positions_of(shape, size, full)
    expected = results(shape, positions, size, dtype, None)
    first, second = (results(shape, positions, size, dtype, True, "cuda") for _ in range(2))
    for found, again, truth in zip(first, second, expected, strict=True):
        assert torch.equal(found, again)
        assert (found - truth).norm() < 2 * torch.finfo(dtype).eps * truth.norm()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")
def test_a_gpu_takes_tf32_where_torch_would() -> None:
    shape, positions = (256, 192), positions_of((256, 192), 64)
    expected, before = results(shape, positions, 64, torch.float32, None), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = results(shape, positions, 64, torch.float32, True, "cuda")
    finally:
        torch.set_float32_matmul_precision(before)
    errors = [float((ours - truth).norm() / truth.norm()) for ours, truth in zip(found, expected, strict=True)]
    assert 1e-5 < errors[0] < 2**-10  # tf32 keeps ten bits


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_librarys_sparse_products_on_a_gpu_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    shape, positions = (70, 66), torch.from_numpy(np.sort(np.random.default_rng(0).choice(70 * 66, 600, replace=False)))

    def computed(device: str) -> list[Tensor]:
        x, values = (drawn(*s, seed=n, dtype=dtype).to(device).requires_grad_() for n, s in enumerate(((150, 66), (600,))))
        y = KERNELS["csr"].prepare(positions.to(device), shape)(x, values, None)
        return [found.detach().cpu() for found in (y, *torch.autograd.grad(y.square().sum(), (x, values)))]

    torch.testing.assert_close(computed("cuda"), computed("cpu"))
