import pytest
import torch

from grow.kernels import KERNELS, Kernel, KernelCase, fastest
from tests.contracts.kernel import KernelContract

CASE = KernelCase(rows=8, columns=4, density=0.5, batch=16, device="cpu")


class TestDense(KernelContract):
    @pytest.fixture
    def kernel(self) -> Kernel:
        return KERNELS["dense"]

    def test_without_positions_all_connections_exist(self, kernel: Kernel) -> None:
        x, weight = torch.randn(2, 4), torch.randn(3, 4)
        assert torch.equal(kernel.prepare(None, (3, 4))(x, weight, None), torch.nn.functional.linear(x, weight))


class TestCsr(KernelContract):
    @pytest.fixture
    def kernel(self) -> Kernel:
        return KERNELS["csr"]

    def test_a_layer_without_positions_is_refused(self, kernel: Kernel) -> None:
        with pytest.raises(ValueError, match="needs the layer's connections; store the layer compressed"):
            kernel.prepare(None, (3, 4))


class TestColumns(KernelContract):
    @pytest.fixture
    def kernel(self) -> Kernel:
        return KERNELS["columns"]

    def test_where_all_rows_read_the_same_columns_the_values_are_the_smaller_weight(self, kernel: Kernel) -> None:
        x, values = torch.tensor([[1.0, 100.0, 2.0]]), torch.tensor([3.0, 4.0, 5.0, 6.0])  # columns 0 and 2 of a weight (2, 3)
        y = kernel.prepare(torch.tensor([0, 2, 3, 5]), (2, 3))(x, values, None)
        assert y.tolist() == [[11.0, 17.0]]

    def test_a_layer_without_positions_is_refused(self, kernel: Kernel) -> None:
        with pytest.raises(ValueError, match="needs the layer's connections; store the layer compressed"):
            kernel.prepare(None, (3, 4))


def test_kernels_are_listed_under_their_names() -> None:
    assert {name: kernel.name for name, kernel in KERNELS.items()} == {name: name for name in KERNELS}


def test_the_fastest_measured_kernel_is_chosen_whatever_the_order() -> None:
    seconds = {"dense": 3e-3, "csr": 1e-3}
    assert fastest(CASE, lambda name, case: seconds.get(name), ["dense", "csr"]) == "csr"
    assert fastest(CASE, lambda name, case: seconds.get(name), ["csr", "dense"]) == "csr"


def test_what_was_not_measured_is_not_chosen_unless_nothing_was() -> None:
    assert fastest(CASE, lambda name, case: 5.0 if name == "csr" else None, ["dense", "csr"]) == "csr"
    assert fastest(CASE, lambda name, case: None, ["dense", "csr"]) == "dense"


def test_no_kernels_to_choose_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="kernels is empty"):
        fastest(CASE, lambda name, case: None, [])
