"""Training on all ranks while the network grows and is pruned.

Between edits every rank trains its shard. Before an edit the shards are collected into the whole training; rank 0 decides and edits
there exactly as one process does, and tells the others what came of it, bit for bit; then each takes its share anew:

    collect -> rank 0: decide, edit, divide -> broadcast -> take | step ... step | collect -> ...

Hence all ranks have the same edits by construction, and a checkpoint is that of one process: it knows nothing of the ranks.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from math import isfinite
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, distributed
from torch.optim.lr_scheduler import LRScheduler

from grow import checkpoint
from grow.axes import IntArray
from grow.controller import Train
from grow.evidence.step import StepGradients
from grow.network import Network
from grow.session import Session
from grow.train import DivergedError, next_training, train_step
from hardware.execute.broadcast import broadcast_checkpoint, broadcast_json, broadcast_tensors
from hardware.execute.exchange import Peers
from hardware.execute.local import Local
from hardware.execute.watch import Watch
from hardware.shard import ChooseKernel, StrategyName, by_density, shard

Parts: TypeAlias = Mapping[str, IntArray]
"""The part of every unit, by hidden space."""
ASK_S = 0.25
"""How often the ranks ask each other whether one of them was told to stop."""

Divide: TypeAlias = Callable[[Network], Parts | None]
"""The network after an edit -> how its units are divided; None where the strategy divides none. Asked on rank 0 alone."""


class Training:
    """A session that all ranks train together.

    Every rank passes a session of its own for the same network; that of rank 0 counts, its history too. ``divide`` says after every
    edit how the units are divided, ``choose`` picks the kernels of the local layers, ``watch`` is told of every step.
    """

    def __init__(
        self,
        session: Session,
        peers: Peers,
        strategy: StrategyName,
        divide: Divide = lambda network: network.parts,
        *,
        choose: ChooseKernel = by_density,
        device: torch.device | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._alone = peers.count == 1 and (session.autocast is not None or session.network.compiled)
        if session.autocast is not None and not self._alone:
            raise ValueError(
                f"autocast of the session is {session.autocast}, but must be None for training on ranks: sums of ranks' parts would be "
                "rounded otherwise than those of one process; leave autocast out"
            )
        if session.network.compiled and not self._alone:
            raise ValueError(
                "the session's network is compiled, but must not be for training on ranks: what they compute are parts of it; leave out "
                "compile"
            )
        self.session, self.peers, self.strategy = session, peers, strategy
        self._divide, self._choose, self._device = divide, choose, device or session.network.device
        self._watch = watch
        self._local: Local | None = None
        self._shares: list[Tensor] = []
        self._losses: list[float] = []  # of steps that are made alone
        self._noted: int | None = None  # the step whose gradients growth waits for
        self._asked_at, self._ask_every, self._ask_step = time.monotonic(), 1, 0

    def steps(self) -> Iterator[int]:
        """Train to the end, growing and pruning. Yields the number of steps made, after every one.

        Between two steps `losses`, `collect`, `collect_weights` and `save` may be called, by all ranks alike.
        """
        session = self.session
        while True:
            with self.busy("editing"):
                until = self._agree()
            if until is None:
                return
            while session.step < until:
                self._step()
                if self._watch is not None:
                    self._watch.made(session.step)
                yield session.step
            self.losses()
            self.collect()

    def stopping(self, told: Callable[[], bool]) -> bool:
        """Whether any rank was ``told`` to stop: the same answer on all of them, if they ask after every step.

        They ask each other only now and then, after numbers of steps that rank 0 sets by its pace.
        """
        if self.peers.count == 1:
            return told()
        if self.session.step < self._ask_step:
            return False
        now = time.monotonic()
        wanted = round(self._ask_every * ASK_S / max(now - self._asked_at, 1e-6))
        every = min(max(1, wanted), 2 * self._ask_every)  # one step that took its time says little of the next
        answers = torch.tensor([told(), every if self.peers.rank == 0 else 0], device=self._device)
        distributed.all_reduce(answers, group=self.peers.group)
        self.peers.settle(answers)
        asked, self._ask_every = answers.tolist()
        self._asked_at, self._ask_step = now, self.session.step + self._ask_every
        return bool(asked)

    def losses(self) -> list[float]:
        """Losses of the steps since it was last asked, on every rank. DivergedError, on every rank, where one is not finite."""
        if self._alone:
            found, self._losses = self._losses, []
            return found
        if not self._shares:
            return []
        assert self._local is not None
        total = self._local.shard.total(torch.stack(self._shares))
        self.peers.settle(total)
        found = total.tolist()
        self._shares = []
        for number, loss in enumerate(found):
            if not isfinite(loss):
                step = self.session.step - len(found) + number + 1
                raise DivergedError(f"loss is {loss} at step {step}, but must be finite; lower learning_rate")
        return found

    def collect(self) -> None:
        """Bring the session's network, optimizer and followers up to date, on every rank."""
        if self._local is not None:
            self._local.collect(self.session)

    def collect_weights(self) -> None:
        """Bring the session's network up to date, on every rank, as far as an evaluation looks at it."""
        if self._local is not None:
            self._local.collect_weights(self.session)

    def busy(self, doing: str) -> AbstractContextManager[None]:
        """What is no step, and may take its time on one rank while the others wait."""
        return nullcontext() if self._watch is None else self._watch.busy(doing)

    def save(self, folder: Path) -> None:
        """Write a numbered checkpoint: that of one process, whatever the number of ranks and the strategy. Rank 0 writes."""
        with self.busy("saving"):
            self._save(folder)

    def _save(self, folder: Path) -> None:
        self.collect()
        if self.peers.rank == 0:
            checkpoint.save_session(folder, self.session)

    def _agree(self) -> int | None:
        """Let rank 0 decide and edit, and take over what came of it. The step to train to, None at the end."""
        told = None
        parts: Parts | None = None
        if self.peers.rank == 0:
            before = self.session.network.topology
            decision = next_training(self.session)
            until = decision.until if isinstance(decision, Train) else None
            edited = self._local is None or self.session.network.topology is not before
            if edited and until is not None:
                parts = self._divide(self.session.network)
            noted = self.session.step if self.session.watches else None
            told = {"until": until, "edited": edited, "divided": parts is not None, "noted": noted}
        heard = broadcast_json(told, self.peers, self._device)
        self._noted = heard["noted"]  # of rank 0 alone the state goes on with updates that change nothing
        if heard["edited"]:
            self._take_over()
            self._take(parts, divided=heard["divided"]) if heard["until"] is not None else None
        return heard["until"]  # type: ignore[no-any-return]

    def _take_over(self) -> None:
        """Rank 0's whole training, on every rank."""
        if self.peers.count == 1:
            return
        mine = checkpoint.capture_session(self.session) if self.peers.rank == 0 else None
        heard = broadcast_checkpoint(mine, self.peers, self._device)
        if mine is None:
            checkpoint.restore_session(self.session, heard)

    def _take(self, parts: Parts | None, *, divided: bool) -> None:
        """This rank's share of the session, by rank 0's parts; alone, the session itself is trained."""
        if self._alone:
            return
        if divided:
            told = None if parts is None else {space: torch.from_numpy(part) for space, part in parts.items()}
            heard = broadcast_tensors(told, self.peers, self._device)
            parts = {space: part.numpy() for space, part in heard.items()}
        self._local = None  # its memory first
        local = shard(
            self.session.network,
            self.strategy,
            self.peers,
            parts=parts,
            batch=self.session.task.batch_size,
            choose=self._choose,
            device=self._device,
            seed=self.session.seed,
        )
        local.module.train()
        self._local = Local.of(self.session, local)

    def _note_gradients(self) -> None:
        """Let rank 0 make the coming step on the whole network beforehand, as far as its gradients: growth goes by them."""
        with self.busy("gathering evidence"):
            self.collect_weights()
            session = self.session
            if self.peers.rank == 0:
                inputs, targets = (part.to(session.network.device) for part in session.task.train_batch(session.step))
                session.note(StepGradients.rehearsed(session.network, session.watched, (inputs, targets), session.task.loss))

    def _step(self) -> None:
        """Forward, backward, one optimizer step on every rank."""
        session, local = self.session, self._local
        if self._alone:
            self._losses.append(train_step(session))
            return
        assert local is not None
        if session.step == self._noted:
            self._note_gradients()
        rate = session.learning_rate
        if rate is not None and not isinstance(rate, LRScheduler):
            for group in session.optimizer.param_groups:
                group["lr"] = rate(session.step)
        for mine, whole in zip(local.optimizer.param_groups, session.optimizer.param_groups, strict=True):
            mine.update({key: value for key, value in whole.items() if key != "params"})
        inputs, targets = session.task.train_batch(session.step)
        share = local.shard.step(local.optimizer, inputs.to(self._device), targets.to(self._device), session.task.loss, session.step)
        if isinstance(rate, LRScheduler):
            with warnings.catch_warnings(action="ignore"):  # it asks whether its own optimizer has stepped; here the local one has
                rate.step()
        local.average(session)
        self._shares.append(share.detach())
        session.step += 1
