"""Dropout by a hash: its draws look random, and depend on nothing but what is dropped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hardware.execute.dropout import DrawnDropout, Elements, hashed
from hardware.execute.exchange import Peers
from hardware.execute.moves import Batch

WORD = (1 << 64) - 1


def dropout(
    p: float = 0.3, channels: bool = False, seed: int = 0, number: int = 0, held: Elements | None = None, peers: Peers | None = None
) -> DrawnDropout:
    return DrawnDropout(p, channels, seed, number, held or Elements(0, False, {}, {}), Batch(64, 7), peers or Peers(0, 1))


def split_mix(seed: int, count: int) -> list[int]:
    """The published generator, in Python's numbers."""
    found = []
    for number in range(count):
        z = (seed + number * 0x9E3779B97F4A7C15) & WORD
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & WORD
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & WORD
        found.append(z ^ z >> 31)
    return found


def test_the_published_generator_is_what_is_computed() -> None:
    assert split_mix(1234567, 4)[1:] == [6457827717110365317, 3203168211198807973, 9817491932198370423]  # its first outputs
    for seed in (1234567, 1 << 63, WORD):
        assert hashed(torch.arange(50), seed).tolist() == [value >> 11 for value in split_mix(seed, 50)]


def test_the_share_that_is_dropped_is_p_and_the_mean_stays() -> None:
    x = torch.ones(64, 500)
    y = dropout(0.3)(x)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert float((y == 0).float().mean()) == pytest.approx(0.3, abs=4 * (0.21 / 32000) ** 0.5)  # four standard errors
    assert float(y[:, :250].mul(y[:, 250:]).mean()) == pytest.approx(1, abs=0.05)  # entries are independent


def test_draws_differ_by_seed_step_and_layer() -> None:
    x, base = torch.ones(64, 20), dropout()
    stepped = dropout()
    stepped.batch.step += 1
    for other in (dropout(seed=1), dropout(number=1), stepped):
        assert 0.3 < float((other(x) == base(x)).float().mean()) < 0.8  # 0.58 by chance
    assert torch.equal(dropout()(x), base(x))


def test_any_part_of_a_batch_and_of_its_entries_drops_what_the_whole_drops() -> None:
    x = torch.ones(64, 6, 4)
    whole = dropout()(x)
    samples = dropout(held=Elements(0, True, {}, {}), peers=Peers(1, 3))
    assert torch.equal(samples(x[21:42]), whole[21:42])
    entries = torch.tensor([5, 0, 2])
    units = dropout(held=Elements(0, False, {1: entries}, {1: 6}))
    assert torch.equal(units(x[:, entries]), whole[:, entries])


def test_channels_are_dropped_whole() -> None:
    y: Tensor = dropout(0.5, channels=True)(torch.ones(64, 5, 3, 3)).flatten(2)
    assert torch.equal(y.amin(2), y.amax(2))
    assert {0.0, 2.0} == set(y.unique().tolist())


def test_evaluation_and_the_ends_of_the_range() -> None:
    x = torch.rand(64, 3) + 1
    assert torch.equal(dropout().eval()(x), x)
    assert torch.equal(dropout(0.0)(x), x)
    assert not dropout(1.0)(x).any()
