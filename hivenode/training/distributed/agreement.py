"""Whether a step that failed on one member was finished by another: the rules, without processes or clocks.

Members compute steps together in generations, each formed anew by all. A step has two parts: each member gets the
whole averaged gradient, then all add up their losses. Whoever has the sum knows that all have the gradient, and has
finished the step. So a member that failed asks all others. If one has finished the step, this member holds its gradient
and finishes it as well; if none has, and none ever will, all begin it again in another generation. Nothing that was
finished is lost, and all that are left come to the same step.
"""

from __future__ import annotations

from collections.abc import Collection

from hivenode.training.distributed.letters import Broken, Stand

Post = list[tuple[str, Broken | Stand]]
"""To whom, and what."""


class Agreement:
    """One member's side of it.

    Args:
        me: this member.

    Attributes:
        generation: grows; 0 before the first.
        members: of it, this one included.
        step: the one that is due; those before it are finished.
        loss: of the step before.
        usable: nobody is known to have left the generation.
        computing: the due step is being computed in it, or the generation formed for it.
    """

    def __init__(self, me: str) -> None:
        self._me = me
        self.generation = self.step = 0
        self.members: tuple[str, ...] = ()
        self.loss = 0.0
        self.usable = self.computing = False
        self._asked: dict[str, Broken] = {}
        """By whoever waits for an answer."""
        self._known: dict[str, Broken | Stand] = {}
        """The last that each member said."""

    @property
    def condemned(self) -> bool:
        """Nothing will come of what is being computed."""
        return self.computing and not self.usable

    def enter(self, generation: int, members: tuple[str, ...], step: int) -> Post:
        """All have agreed to form that generation, for that step."""
        self.generation, self.members, self.step = generation, members, step
        self.usable = not any(broken.generation >= generation for broken in self._asked.values())
        self.computing = self.usable
        return self._answers()

    def rest(self) -> Post:
        """The generation is formed."""
        self.computing = False
        return self._answers()

    def begin(self) -> bool:
        """Compute the due step, if there is a generation to do it in."""
        self.computing = self.usable
        return self.usable

    def finish(self, loss: float) -> Post:
        """The due step is done."""
        self.step, self.loss, self.computing = self.step + 1, loss, False
        return self._answers()

    def fail(self) -> Post:
        """The due step, or forming for it, has failed here: ask the others."""
        self.usable = self.computing = False
        broken = Broken(self.generation, self.step, self.loss)
        return [*((other, broken) for other in self.members if other != self._me), *self._answers()]

    def changed(self, present: Collection[str]) -> None:
        """Who is there now. A generation that has lost a member is of no more use."""
        if not set(self.members) <= set(present):
            self.usable = False

    def heard(self, sender: str, letter: Broken | Stand) -> Post:
        """What another has said; what to answer."""
        self._known[sender] = letter
        if isinstance(letter, Stand):
            return []
        self._asked[sender] = letter
        if letter.generation == self.generation:
            self.usable = False
        return self._answers()

    def settled(self, present: Collection[str]) -> bool:
        """After `fail`: whether it is known where all those stand that are left."""
        return all(
            other == self._me or other not in present or self._stand(other) is not None for other in self.members
        )

    def verdict(self) -> float | None:
        """Once settled: the loss of the due step, if it was finished by anybody, so that all finish it."""
        stands = (self._stand(other) for other in self.members if other != self._me)
        return next((stand.loss for stand in stands if stand is not None and stand.finished), None)

    def _stand(self, other: str) -> Stand | None:
        """Where a member is known to stand with the due step."""
        said = self._known.get(other)
        if said is None or said.generation != self.generation:
            return None
        if isinstance(said, Broken) and said.step >= self.step:
            return Stand(said.generation, self.step, said.step > self.step, said.loss)
        return said if isinstance(said, Stand) and said.step == self.step else None

    def _answers(self) -> Post:
        post: Post = []
        for sender, asked in list(self._asked.items()):
            finished = asked.step < self.step
            never = asked.generation < self.generation or (
                asked.generation == self.generation and not self.computing and not self.usable
            )
            if finished or never:
                del self._asked[sender]
                post.append((sender, Stand(asked.generation, asked.step, finished, self.loss)))
        return post
