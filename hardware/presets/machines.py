"""The presets: what their makers state, and where. Peaks are of float32 without tensor cores, which is PyTorch's default."""

from __future__ import annotations

from hardware.presets.roofline import LAUNCHES, OPTIMIZER_ACCESSES, Chip, Machine, Wire

NCCL = "https://github.com/NVIDIA/nccl/blob/master/src/graph/tuning.cc"
LATENCY_SOURCE = f"{NCCL}: baseLat and hwLat of the ring with protocol LL; the same constants choose NCCL's own algorithms"
SPARSE_SOURCE = (
    "https://arxiv.org/abs/2006.10901 (Gale et al. 2020, abstract): 27 % of the single-precision peak on V100; "
    "assumed: cuSPARSE, which torch calls, reaches a quarter of that"
)
SLOWDOWN = 1.189
SLOWDOWN_SOURCE = (
    "https://arxiv.org/abs/2507.03114 (Lee et al. 2025, abstract): computation under communication is on average 18.9 % slower, at most"
    " 40 %, on 4 A100, H100, MI250 or MI210; assumed: the same here"
)
ASSUMED = {
    "dense_share": "assumed: large cuBLAS products reach 70 % of the float32 peak",
    "launch_s": "assumed: 5 us for a kernel launched by PyTorch",
    "step_overhead_s": "assumed: 200 us for the loss, autograd and the optimizer of a step",
    "launches": f"assumed: {LAUNCHES} a layer step, counted in PyTorch's: three products, bias gradient, activation both ways, optimizer",
    "accesses": "assumed: those of each operator's formula, as if no cache kept anything between its kernels",
    "optimizer_accesses": f"assumed: {OPTIMIZER_ACCESSES} a weight: SGD with momentum reads three values and writes two",
}

COLLECTIVE_S = 6.6e-6
NVLINK_S, PCIE_S, NETWORK_S = 0.6e-6, 1.0e-6, 2.7e-6
CSR_SHARE = 0.27 / 4
STEP_OVERHEAD_S = 2e-4

RTX_6000_ADA = Chip("NVIDIA RTX 6000 Ada Generation", 48 * 10**9, 91.1e12, 960e9, 0.7, CSR_SHARE, 5e-6)
H100 = Chip("NVIDIA H100 SXM", 80 * 10**9, 67e12, 3.35e12, 0.7, CSR_SHARE, 5e-6)

PCIE = Wire("PCIe 4.0 x16", PCIE_S, 0.8 * 16e9 * 16 * 128 / 130 / 8, 0.8 * 16e9 * 16 * 128 / 130 / 8)
NVLINK = Wire("NVLink 4", NVLINK_S, 450e9, 450e9)
INFINIBAND = Wire("InfiniBand NDR", NETWORK_S, 50e9, 8 * 50e9)

_WORKSTATION = {
    "chip": "https://www.nvidia.com/en-us/design-visualization/rtx-6000/: 91.1 TFLOPS, 48 GB, 960 GB/s, PCIe 4.0 x16, no NVLink",
    "within": "https://pcisig.com/faq: 16 GT/s on 16 lanes, coded 128b/130b, is 31.5 GB/s each way; assumed: 80 % of it are usable",
    "latency_s": LATENCY_SOURCE,
    "csr_share": SPARSE_SOURCE,
    "slowdown": SLOWDOWN_SOURCE,
    **ASSUMED,
}
_SERVER = {
    "chip": "https://www.nvidia.com/en-us/data-center/h100/: 67 TFLOPS (float32), 80 GB, 3.35 TB/s",
    "within": "https://www.nvidia.com/en-us/data-center/h100/: NVLink 900 GB/s, that is 450 GB/s each way, through NVSwitch",
    "latency_s": LATENCY_SOURCE,
    "csr_share": SPARSE_SOURCE,
    "slowdown": SLOWDOWN_SOURCE,
    **ASSUMED,
}
_NETWORK = {
    "between": "https://docs.nvidia.com/dgx/dgxh100-user-guide/introduction-to-dgxh100.html: a ConnectX-7 of 400 Gb/s for each of 8 GPUs"
}


def _workstation(gpus: int) -> Machine:
    return Machine(f"pcie-{gpus}", 1, gpus, RTX_6000_ADA, PCIE, None, COLLECTIVE_S, STEP_OVERHEAD_S, SLOWDOWN, _WORKSTATION)


def _servers(name: str, hosts: int) -> Machine:
    between, sources = (INFINIBAND, _SERVER | _NETWORK) if hosts > 1 else (None, _SERVER)
    return Machine(name, hosts, 8, H100, NVLINK, between, COLLECTIVE_S, STEP_OVERHEAD_S, SLOWDOWN, sources)


MACHINES = {machine.name: machine for machine in (_workstation(2), _workstation(4), _servers("nvlink-8", 1), _servers("infiniband-2x8", 2))}
"""By name: a PCIe workstation with 2 and 4 GPUs, an NVLink server with 8, and two such servers on InfiniBand."""
