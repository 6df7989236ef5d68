import copy
import dataclasses
from collections import OrderedDict, UserDict, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from fastfeed.data.tree import leaves, replace_leaves
from tests.data.test_tree import Frozen, Named, Replaced, Sample, Slotted

LEAF = st.one_of(
    st.none(), st.integers(0, 9), st.text(max_size=2), st.sampled_from([{1, 2}, b"ab", 1.5, range(3), int])
)
KEY = st.one_of(st.text(max_size=2), st.integers(0, 3), st.none(), st.tuples(st.integers(0, 1)))


def containers(children):
    pairs = st.tuples(children, children)
    items = st.dictionaries(KEY, children, max_size=3)
    return st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        items,
        items.map(OrderedDict),
        items.map(UserDict),
        items.map(lambda d: defaultdict(list, d)),
        pairs.map(lambda p: Named(*p)),
        pairs.map(lambda p: Sample(*p)),
        pairs.map(lambda p: Frozen(*p)),
        pairs.map(lambda p: Slotted(*p)),
    )


TREE = st.recursive(LEAF, containers, max_leaves=12)


def at(tree, path):
    """Follow a path as a user would, from its documentation."""
    for key in path:
        tree = getattr(tree, key) if dataclasses.is_dataclass(tree) else tree[key]
    return tree


def same(a, b):
    """Whether trees are equal, and of the same types everywhere."""
    if type(a) is not type(b):
        return False
    if dataclasses.is_dataclass(a) and not isinstance(a, type):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, dict | UserDict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@settings(max_examples=150, deadline=None)
@given(TREE)
def test_round_trip(tree):
    before = copy.deepcopy(tree)
    seen = []

    def replace(path, leaf):
        seen.append((path, leaf))
        return Replaced(leaf)

    replaced = replace_leaves(tree, replace)
    assert same(tree, before)  # untouched
    found = list(leaves(tree))
    assert [path for path, _ in seen] == [path for path, _ in found]  # one order
    assert len({path for path, _ in found}) == len(found)
    for (path, leaf), (_, other) in zip(found, seen, strict=True):
        assert at(tree, path) is leaf is other
        assert at(replaced, path) == Replaced(leaf)
    back = replace_leaves(tree, lambda path, leaf: leaf)
    assert same(back, tree)
    if found and found[0][0]:
        assert back is not tree
