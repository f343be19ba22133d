import os
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from grow.kernels import KERNELS, Kernel, KernelCase, UnfitStructureError, compiled, csr, fastest, suited
from grow.kernels.lines import Lines
from grow.kernels.orders import by_rows
from grow.kernels.radix import Circle, Tiles, circle_of, wiring_of
from grow.network import Network
from grow.seeds.radix import Ring, radix_matrices
from tests.contracts.kernel import KernelContract

CASE = KernelCase(rows=8, columns=4, density=0.5, batch=16, device="cpu")


class TestDense(KernelContract):
    @pytest.fixture
    def kernel(self) -> Kernel:
        return KERNELS["dense"]

    def test_a_layer_without_rows_has_an_empty_gradient(self, kernel: Kernel) -> None:
        weight = torch.zeros(0, 3, requires_grad=True)
        kernel.prepare(torch.zeros(0, dtype=torch.int64), (0, 3))(torch.ones(2, 3), weight, None).sum().backward()
        assert weight.grad is not None
        assert weight.grad.shape == (0, 3)

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

    @pytest.mark.parametrize(("bytes_", "tiles"), [(4 * 30 * 1033, 3), (4 * 30 * 1033 + 1, 1)])
    def test_features_too_large_for_the_cache_are_computed_in_tiles_each_as_if_alone(
        self, kernel: Kernel, bytes_: int, tiles: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(csr, "TILED_BYTES", bytes_)
        positions, values = torch.arange(0, 20 * 30, 3), torch.randn(200, requires_grad=True)
        product, x = kernel.prepare(positions, (20, 30)), torch.randn(2 * csr.TILE + 9, 30, requires_grad=True)
        assert len(csr._tiles(x.t(), csr._tile(x.t()))) == tiles
        y = product(x, values, None)
        assert torch.equal(y, torch.cat([product(part, values, None) for part in x.split(csr.TILE)]))
        dense = torch.zeros(20 * 30).index_put((positions,), values.detach()).reshape(20, 30)
        dx, dvalues = torch.autograd.grad(y.square().sum() / 2, (x, values))
        torch.testing.assert_close(dx, y @ dense)
        torch.testing.assert_close(dvalues, (y.T @ x).flatten()[positions], rtol=1e-4, atol=1e-3)


class TestCompiled(KernelContract):
    @pytest.fixture
    def kernel(self) -> Kernel:
        return KERNELS["compiled"]

    def test_a_layer_without_positions_is_refused(self, kernel: Kernel) -> None:
        with pytest.raises(ValueError, match="needs the layer's connections; store the layer compressed"):
            kernel.prepare(None, (3, 4))

    def test_a_matrix_of_several_panels_is_the_dense_one(self, kernel: Kernel) -> None:
        positions = torch.from_numpy(np.sort(np.random.default_rng(0).choice(8 * 2500, 1600, replace=False)))
        values, x, upstream = torch.randn(1600).double(), torch.randn(70, 2500).double(), torch.randn(70, 8).double()
        assert Lines.of(*by_rows(positions, (8, 2500)), 2500).panels == 3  # of 200 connections a row, 64 or more in each
        dense = torch.zeros(8 * 2500).double().index_put((positions,), values).reshape(8, 2500)
        for weight, given, back in ((dense, x, upstream), (dense.T, upstream, x)):
            at = weight.flatten().nonzero().flatten()
            source, stored = given.clone().requires_grad_(), weight.flatten()[at].requires_grad_()
            y = kernel.prepare(at, (weight.shape[0], weight.shape[1]))(source, stored, None)
            y.backward(back)
            assert source.grad is not None
            assert stored.grad is not None
            torch.testing.assert_close(y, given @ weight.T)
            torch.testing.assert_close(source.grad, back @ weight)
            torch.testing.assert_close(stored.grad, (back.T @ given).flatten()[at])

    @pytest.mark.parametrize("batch", [1, 16, 70, 128])
    @pytest.mark.parametrize("row_major", [False, True], ids=["feature-major", "row-major"])
    def test_any_number_of_threads_computes_the_same_bits(self, kernel: Kernel, batch: int, row_major: bool) -> None:
        positions = torch.arange(0, 40 * 30, 3)
        x, values, bias = (torch.randn(shape, requires_grad=True) for shape in ((batch, 30), (len(positions),), (40,)))
        upstream = torch.randn(batch, 40) if row_major else torch.randn(40, batch).t()
        product = kernel.prepare(positions, (40, 30))

        def run() -> list[torch.Tensor]:
            y = product(x, values, bias)
            return [y, *torch.autograd.grad(y, (x, values, bias), upstream)]

        alone = run()
        torch.set_num_threads(3)
        try:
            together = run()
        finally:
            torch.set_num_threads(1)
        assert all(torch.equal(first, second) for first, second in zip(alone, together, strict=True))

    def test_machine_code_is_kept_under_a_hash_of_all_that_it_is_written_in(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        loops = pytest.importorskip("grow.kernels.loops")
        sources = loops._sources()
        assert loops.loops(torch.float32, 64).transposed.code.__qualname__.endswith(sources)
        monkeypatch.setattr(loops.inspect, "getsource", lambda module: "a helper" if module is loops.vectors else "the loops")
        assert loops._sources.__wrapped__() != sources

    @pytest.mark.skipif(os.name == "nt", reason="folders have no such modes")
    @pytest.mark.parametrize(
        ("mode", "strange", "kept"),
        [(0o755, "group", True), (0o775, "", True), (0o775, "group", False), (0o757, "", False), (0o700, "user", False)],
    )
    def test_machine_code_is_kept_and_read_only_where_nobody_else_may_write(
        self, mode: int, strange: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loops = pytest.importorskip("grow.kernels.loops")
        monkeypatch.setattr("numba.core.config.CACHE_DIR", str(tmp_path))

        def made() -> Callable[[int], None]:
            def nothing(count: int) -> None:
                pass

            return nothing

        loops._may_be_kept(made())  # makes the folder
        (folder,) = tmp_path.iterdir()
        folder.chmod(mode)
        monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + (strange == "user"))
        monkeypatch.setattr(os, "getegid", lambda: folder.stat().st_gid + (strange == "group"))
        read = [loops.machine_code(made(), loops.types.intp).code.cache_hits for _ in range(2)]
        assert read == [0, int(kept)]
        assert bool(list(folder.iterdir())) == kept

    def test_csr_computes_where_numba_is_missing(self, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compiled, "available", lambda: False)
        positions, x, values = torch.tensor([0, 2, 5, 7]), torch.randn(2, 4), torch.randn(4)
        assert torch.equal(kernel.prepare(positions, (3, 4))(x, values, None), KERNELS["csr"].prepare(positions, (3, 4))(x, values, None))


@st.composite
def constant_fan_in(draw: st.DrawFn) -> tuple[tuple[int, int], Tensor]:
    """A layer (O, I) of which every row has the same number of connections."""
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    count = draw(st.integers(1, shape[1]))
    chosen = st.lists(st.integers(0, shape[1] - 1), min_size=count, max_size=count, unique=True)
    return shape, torch.tensor([row * shape[1] + column for row in range(shape[0]) for column in sorted(draw(chosen))])


class TestCondensed(KernelContract):
    structures = constant_fan_in()
    example = ((3, 4), (0, 2, 5, 7, 10, 11))
    wide = (130, 200), tuple(row * 200 + (row + 9 * n) % 200 for row in range(130) for n in range(20))

    @pytest.fixture
    def kernel(self) -> Kernel:
        return KERNELS["condensed"]

    def test_rows_of_different_length_are_refused(self, kernel: Kernel) -> None:
        uneven = torch.tensor([0, 2, 3, 5])  # two rows of four: three connections and one
        assert not kernel.fits(uneven, (2, 4))
        with pytest.raises(
            UnfitStructureError, match=r"condensed kernel was given 4 positions of a layer \(2, 4\), but needs equally many"
        ):
            kernel.prepare(uneven, (2, 4))

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


@st.composite
def radix_layers(draw: st.DrawFn) -> tuple[tuple[int, int], Tensor]:
    """A layer of a RadiX-Net (O, I) in either direction, its nodes permuted or its last copies of the circle cut short."""
    system = draw(st.lists(st.integers(2, 4), min_size=1, max_size=2))
    before, after = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    layer = draw(st.sampled_from(radix_matrices([system], [before, *[after] * len(system)]))).toarray()
    layer = layer if draw(st.booleans()) else layer.T
    if draw(st.booleans()):  # nodes in any order
        layer = layer[draw(st.permutations(range(layer.shape[0])))][:, draw(st.permutations(range(layer.shape[1])))]
    else:
        cut = [draw(st.integers(0, max(0, length - 2 * prod(system)))) for length in layer.shape]
        layer = layer[: layer.shape[0] - cut[0], : layer.shape[1] - cut[1]]
    return layer.shape, torch.from_numpy(np.flatnonzero(layer))


class TestRadix(KernelContract):
    structures = radix_layers()
    example = ((4, 2), (0, 3, 4, 7))  # rows 0 and 2 read column 0, rows 1 and 3 column 1
    wide = (128, 192), tuple(np.flatnonzero(np.kron(np.ones((16, 24)), np.eye(8) + np.roll(np.eye(8), 1, 0))))

    @pytest.fixture
    def kernel(self) -> Kernel:
        return KERNELS["radix"]

    @pytest.mark.parametrize(("radix", "stride", "widths"), [(2, 1, (1, 1)), (3, 2, (2, 3)), (2, 6, (4, 1))])
    def test_the_rule_of_a_layer_is_found_from_its_connections(self, radix: int, stride: int, widths: tuple[int, int]) -> None:
        ring = Ring(18, radix, stride)
        shape = (18 * widths[1], 18 * widths[0])
        found = circle_of(np.flatnonzero(ring.joined(np.arange(shape[1]), np.arange(shape[0])).T), shape)
        assert found == Circle(18, radix, stride, 0)

    def test_where_places_have_nodes_enough_no_zero_is_multiplied(self) -> None:
        positions = np.flatnonzero(np.kron(np.ones((16, 32)), np.eye(4) + np.roll(np.eye(4), 1, 0)))
        circle = circle_of(positions, (64, 128))
        assert circle == Circle(4, 2, 1, 0)
        assert Tiles.of(circle, *np.divmod(positions, 128), (64, 128)).shape == (4, 16, 64)  # 4096 products, 4096 connections

    def test_the_places_of_the_last_digit_are_one_dense_product_each(self) -> None:
        last = radix_matrices([[4, 4]], [1, 1, 1])[1].toarray().T  # stride 4: places 0, 4, 8, 12 read one another
        circle = circle_of(np.flatnonzero(last), (16, 16))
        assert circle is not None
        assert Tiles.of(circle, *np.nonzero(last), (16, 16)).shape == (4, 4, 4)

    @pytest.mark.parametrize("number", [0, 1, 2])
    def test_nodes_in_any_order_are_multiplied_by_the_same_tiles(self, number: int) -> None:
        layer = radix_matrices([[4, 2, 3]], [2, 2, 2, 2])[number].toarray().T  # radix 4 of 24 places, 2 with stride 4, 3 with stride 8
        rng = np.random.default_rng(0)
        permuted = layer[rng.permutation(48)][:, rng.permutation(48)]
        assert circle_of(np.flatnonzero(permuted), (48, 48)) is None
        wirings = [wiring_of(np.flatnonzero(matrix), (48, 48)) for matrix in (layer, permuted)]
        shapes = [Tiles.both(found, *np.nonzero(layer), (48, 48))[0].shape for found in wirings[:1] if found is not None]
        assert wirings[1] is not None
        assert Tiles.both(wirings[1], *np.nonzero(permuted), (48, 48))[0].shape == shapes[0]

    def test_what_is_no_layer_of_a_radix_net_is_refused_by_name(self, kernel: Kernel) -> None:
        missing = np.delete(np.flatnonzero(radix_matrices([[2, 3]], [2, 2, 2])[0].toarray().T), 5)
        with pytest.raises(
            UnfitStructureError, match=r"radix kernel was given 47 positions of a layer \(12, 12\), but needs those of a RadiX"
        ):
            kernel.prepare(torch.from_numpy(missing), (12, 12))
        assert not kernel.fits(torch.from_numpy(missing), (12, 12))
        assert not kernel.fits(torch.zeros(0, dtype=torch.int64), (2, 2))

    def test_a_layer_without_positions_is_refused(self, kernel: Kernel) -> None:
        with pytest.raises(UnfitStructureError, match="given no positions"):
            kernel.prepare(None, (3, 4))


def radix_network() -> Network:
    network = Network(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), torch.zeros(1, 8))
    network.set_connections({"0": np.flatnonzero(radix_matrices([[2, 2]], [2, 2, 2])[0].toarray().T)})
    return network


def test_a_kernel_is_offered_only_where_it_fits_the_connections() -> None:
    asked: list[KernelCase] = []
    radix_network().use_kernels(lambda case: asked.append(case) or "csr", batch=4)
    assert ["radix" in case.unfit for case in asked] == [False, True]
    assert fastest(asked[1], lambda name, case: {"radix": 1.0}.get(name, 2.0), KERNELS) != "radix"


def test_as_soon_as_connections_leave_the_structure_another_kernel_takes_over() -> None:
    network = radix_network()
    network.use_kernels(lambda case: "dense" if case.unfit else "radix", batch=4)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    before = network(x)
    assert network.layers["0"].kernel == "radix"
    absent = np.setdiff1d(np.arange(64), network.topology.layer("0").positions())[:1]
    network.grow_connections({"0": absent})
    assert network.layers["0"].kernel == "csr"
    torch.testing.assert_close(network(x), before)


def test_kernels_are_listed_under_their_names() -> None:
    assert {name: kernel.name for name, kernel in KERNELS.items()} == {name: name for name in KERNELS}


TWO = {name: KERNELS[name] for name in ("dense", "csr")}


def test_the_fastest_measured_kernel_is_chosen_whatever_the_order() -> None:
    seconds = {"dense": 3e-3, "csr": 1e-3}
    assert fastest(CASE, lambda name, case: seconds.get(name), TWO) == "csr"
    assert fastest(CASE, lambda name, case: seconds.get(name), dict(reversed(TWO.items()))) == "csr"


def test_what_was_not_measured_is_not_chosen_unless_nothing_was() -> None:
    assert fastest(CASE, lambda name, case: 5.0 if name == "csr" else None, TWO) == "csr"
    assert fastest(CASE, lambda name, case: None, TWO) == "dense"


def test_no_kernels_to_choose_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="kernels is empty"):
        fastest(CASE, lambda name, case: None, {})


def test_kernels_that_are_made_for_some_structures_are_offered_there_alone() -> None:
    def own(weight: np.ndarray) -> frozenset[str]:
        return suited(torch.from_numpy(np.flatnonzero(weight)), weight.shape, KERNELS.values())

    assert own(np.kron([[1, 0, 1], [0, 1, 0]], np.ones((32, 32)))) == {"block_16", "block_32"}
    assert own(np.kron([[1, 0], [0, 1]], np.ones((64, 64)))) == {"block_16", "block_32", "block_64", "condensed", "radix"}
    assert own(np.ones((6, 1)) * [1, 0, 1, 1, 0]) == {"columns", "condensed"}
    assert own(np.random.default_rng(0).random((40, 40)) < 0.2) == frozenset()
    assert (
        fastest(replace(CASE, suited=frozenset({"radix"})), lambda name, _: {"radix": 1.0, "block_16": 0.5}.get(name, 2.0), KERNELS)
        == "radix"
    )
