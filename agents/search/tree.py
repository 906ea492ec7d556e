"""A search tree over actions: choose (PUCT or UCB), expand, back up; and preference pairs between siblings (Agent Q).

The tree knows nothing of the world: the caller steps it, and restores a snapshot before each descent.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(kw_only=True, eq=False)
class Node:
    """A state. `visits` and `total` are of the attempts that came through it; `prior` that of the action into it."""

    prior: float = 1.0
    visits: int = 0
    total: float = 0.0
    children: dict[str, "Node"] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """Mean return of the attempts through it; zero before the first."""
        return self.total / self.visits if self.visits else 0.0


def puct(parent: Node, child: Node, exploration: float) -> float:
    """Q + c * prior * sqrt(N) / (1 + n), AlphaZero's rule."""
    return child.value + exploration * child.prior * math.sqrt(parent.visits) / (1 + child.visits)


def ucb(parent: Node, child: Node, exploration: float) -> float:
    """Q + c * sqrt(ln N / n); an action not yet tried comes first."""
    if not child.visits:
        return math.inf
    return child.value + exploration * math.sqrt(math.log(parent.visits) / child.visits)


def choose(node: Node, exploration: float, *, rule: str = "puct") -> str:
    """The action to try next; of equal ones the first. `rule` is "puct" or "ucb"."""
    if rule not in ("puct", "ucb"):
        raise ValueError(f"rule is {rule!r}, expected 'puct' or 'ucb'")
    if not node.children:
        raise ValueError("the node has no children, expected expand first")
    score = puct if rule == "puct" else ucb
    return max(node.children, key=lambda action: score(node, node.children[action], exploration))


def expand(node: Node, priors: Mapping[str, float]) -> None:
    """Gives a leaf its actions."""
    if node.children:
        raise ValueError("the node has children already")
    node.children = {action: Node(prior=prior) for action, prior in priors.items()}


def back_up(path: list[Node], result: float, discount: float = 1.0) -> None:
    """Adds the result of an attempt to each node that it came through, from the last to the root."""
    for node in reversed(path):
        node.visits += 1
        node.total += result
        result *= discount


def sibling_pairs(root: Node, gap: float, *, visits: int = 1) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """(actions before, chosen, rejected) where two actions of a node differ in value by more than `gap`.

    Args:
        root: of a tree that was searched.
        gap: smallest difference of values.
        visits: that both must have.
    """
    stack: list[tuple[tuple[str, ...], Node]] = [((), root)]
    while stack:
        before, node = stack.pop()
        known = [(action, child) for action, child in node.children.items() if child.visits >= visits]
        for better, first in known:
            for worse, second in known:
                if first.value - second.value > gap:
                    yield before, better, worse
        stack += [((*before, action), child) for action, child in node.children.items()]
