"""Generations are filed under the revision of their state, in random histories of one machine."""

from __future__ import annotations

import os
import random

from castore.services.state_revision import decide

SEQUENCES = int(os.environ.get("CASTORE_STATE_SEQUENCES", "2000"))


class Machine:
    """The true state, and next to it what castore notes and files."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.configured = self.truth = "r0"
        self.noted: str | None = None
        self.generations: list[tuple[str, str, bool]] = []
        """(filed under, true revision, safety)."""
        self.undo: int | None = None
        self.deployed = 0
        self.settle()

    def known(self, revision: str) -> bool:
        return any(filed == revision for filed, _, _ in self.generations)

    def rule(self) -> str:
        return decide(self.configured, self.noted, self.known).revision

    def settle(self) -> None:
        """What `follow` does at a boot, with follow = "report"."""
        if not decide(self.configured, self.noted, self.known).left_behind:
            self.noted = self.configured

    def take(self, *, pre_rollback: bool = False) -> None:
        filed = self.rule()
        assert filed == self.truth
        self.generations.append((filed, self.truth, pre_rollback))
        if not pre_rollback:
            self.noted = filed

    def deploy(self) -> None:
        self.deployed += 1
        self.configured = self.truth = f"r{self.deployed}"
        self.settle()

    def guard(self) -> None:
        self.take()
        before = len(self.generations) - 1
        was = self.configured
        if self.random.random() < 0.5:
            self.deploy()
            return
        self.configured = was
        self.restore(before)

    def go_back(self) -> None:
        if known := sorted({filed for filed, _, pre_rollback in self.generations if not pre_rollback}):
            self.configured = self.random.choice(known)

    def restore(self, number: int) -> None:
        filed, truth, _ = self.generations[number]
        self.take(pre_rollback=True)
        self.undo = len(self.generations) - 1
        self.truth, self.noted = truth, filed

    def rollback(self) -> None:
        if self.generations:
            self.restore(self.random.randrange(len(self.generations)))

    def take_back(self) -> None:
        if self.undo is not None:
            before = self.generations[self.undo]
            self.restore(self.undo)
            assert self.noted == before[1]

    def follow(self) -> None:
        self.settle()
        if decide(self.configured, self.noted, self.known).left_behind:
            found = [(not pre_rollback, n) for n, (filed, _, pre_rollback) in enumerate(self.generations) if filed == self.configured]
            self.restore(max(found)[1])
        assert self.noted == self.truth == self.configured

    def step(self) -> None:
        steps = (
            self.deploy, self.guard, self.go_back, self.take, self.rollback, self.take_back, self.follow, self.settle
        )
        self.random.choice(steps)()
        assert self.noted == self.truth


def test_every_generation_is_filed_under_the_revision_of_its_state():
    for seed in range(SEQUENCES):
        machine = Machine(seed)
        for _ in range(15):
            machine.step()
        assert all(filed == truth for filed, truth, _ in machine.generations)
