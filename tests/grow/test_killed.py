"""A training in a process of its own that is killed three times ends as the one that was not: compiled kernels, dropout, Adam, splicing.

Of such a size that the compiled kernels have tiles, and with updates and checkpoints that do not coincide.
"""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grow import checkpoint

STEPS, INTERVAL = 240, 8

TRAINING = f"""
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from grow import checkpoint
from grow.fitting import prepare
from grow.history import History
from grow.train import train

folder = Path(sys.argv[1])
inputs = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
parts = [TensorDataset(part, (part[:, :3].sum(1) > 0).long()) for part in inputs.split(1500)]
loaders = DataLoader(parts[0], batch_size=50, shuffle=True), DataLoader(parts[1], batch_size=500)
torch.manual_seed(0)
layers = [nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 192), nn.ReLU(), nn.Dropout(0.2), nn.Linear(192, 2)]
session = prepare(
    nn.Sequential(*layers),
    *loaders,
    history=History(folder / "history.jsonl"),
    density=0.05,
    steps={STEPS},
    update_interval={INTERVAL},
    optimizer="adam",
    splicing=True,
    timings=lambda kernel, case: 0.0 if kernel == "compiled" else 1.0,
)
saved, _ = checkpoint.last_whole(folder / "checkpoint")
if saved is None:
    session.history.rewind(0)
else:
    checkpoint.restore_session(session, saved)
for progress in train(session):
    if progress.step % 5 == 0:  # between updates too
        checkpoint.save_session(folder / "checkpoint", session)
print(*{{layer.kernel for layer in session.network.layers.values()}})
"""


@pytest.mark.slow
def test_a_training_that_is_killed_anywhere_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert finished(whole) == ["compiled"]
    draw = random.Random(0)
    for point in sorted(draw.sample(range(1, STEPS // 5), 3)):
        with subprocess.Popen([sys.executable, "-c", TRAINING, str(killed)], stdout=subprocess.DEVNULL) as process:
            end = time.monotonic() + 120
            while last(killed) < 5 * point:
                assert process.poll() is None
                assert time.monotonic() < end, "waited too long"
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.05))
            process.kill()
        assert 0 < last(killed) < STEPS
    assert finished(killed) == ["compiled"]
    assert (whole / "history.jsonl").read_bytes() == (killed / "history.jsonl").read_bytes()
    one, other = (folder / "checkpoint" / f"{STEPS:08d}" for folder in (whole, killed))
    assert (one / "tensors.safetensors").read_bytes() == (other / "tensors.safetensors").read_bytes()
    saved = checkpoint.read(one)
    assert saved.meta == checkpoint.read(other).meta
    assert any(name.startswith("splice/") and tensor.numel() for name, tensor in saved.tensors.items())


def last(folder: Path) -> int:
    """The step of the last checkpoint, 0 before the first."""
    return max((int(path.name) for path in (folder / "checkpoint").glob("[0-9]*[0-9]")), default=0)


def finished(folder: Path) -> list[str]:
    """Train to the end, from the last checkpoint if there is one; the layers' kernels."""
    done = subprocess.run([sys.executable, "-c", TRAINING, str(folder)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
