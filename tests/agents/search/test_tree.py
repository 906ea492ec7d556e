"""The search tree against numbers worked out by hand, and against exhaustive search."""

import math

import pytest

from agents.search.tree import Node, back_up, choose, expand, puct, sibling_pairs, ucb

TREE = {"a": {"a": 0.0, "b": 0.2}, "b": {"a": 1.0, "b": 0.1}}


def search(rounds: int, rule: str) -> Node:
    root = Node()
    for _ in range(rounds):
        node, path, actions = root, [root], []
        while len(actions) < 2:
            if not node.children:
                expand(node, {"a": 0.5, "b": 0.5})
            actions.append(choose(node, 1.0, rule=rule))
            node = node.children[actions[-1]]
            path.append(node)
        back_up(path, TREE[actions[0]][actions[1]])
    return root


def test_scores_by_hand() -> None:
    parent, child = Node(visits=9, total=3.0), Node(prior=0.5, visits=2, total=1.0)
    assert puct(parent, child, 2.0) == pytest.approx(0.5 + 2.0 * 0.5 * 3 / 3)
    assert ucb(parent, child, 2.0) == pytest.approx(0.5 + 2.0 * math.sqrt(math.log(9) / 2))
    assert ucb(parent, Node(), 2.0) == math.inf


def test_back_up_discounts_towards_the_root() -> None:
    path = [Node(), Node(), Node()]
    back_up(path, 1.0, discount=0.5)
    assert [node.total for node in path] == [0.25, 0.5, 1.0]
    assert all(node.visits == 1 for node in path)


@pytest.mark.parametrize("rule", ["puct", "ucb"])
def test_finds_the_best_leaf(rule: str) -> None:
    root = search(100, rule)
    best = max(root.children, key=lambda action: root.children[action].visits)
    child = root.children[best]
    assert (best, max(child.children, key=lambda action: child.children[action].visits)) == ("b", "a")
    assert root.visits == 100
    assert sum(child.visits for child in root.children.values()) == 100


def test_pairs_prefer_the_better_sibling_beyond_the_gap() -> None:
    pairs = set(sibling_pairs(search(100, "ucb"), 0.5))
    assert (("b",), "a", "b") in pairs
    assert (("a",), "b", "a") not in pairs  # 0.2 against 0: within the gap
    assert not any((before, worse, better) in pairs for before, better, worse in pairs)


def test_wrong_use_says_so() -> None:
    with pytest.raises(ValueError, match="expand first"):
        choose(Node(), 1.0)
    with pytest.raises(ValueError, match="expected 'puct' or 'ucb'"):
        choose(Node(), 1.0, rule="best")
