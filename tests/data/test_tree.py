import dataclasses
from collections import Counter, OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import MutableMapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch

from fastfeed.data.tree import leaves, path_name, replace_leaves, resolved


@dataclasses.dataclass(frozen=True)
class Replaced:
    leaf: Any


class Named(NamedTuple):
    image: Any
    label: Any


@dataclasses.dataclass
class Sample:
    image: Any
    label: Any = 0

    def __post_init__(self):
        assert not isinstance(self.image, Replaced), "__post_init__ ran on the new leaves"


@dataclasses.dataclass(frozen=True)
class Frozen:
    image: Any
    label: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    image: Any
    label: Any


class Tagged(dict):
    def __init__(self, items, tag):
        super().__init__(items)
        self.tag = tag


class Shared(MutableMapping):
    """A mapping of which a shallow copy is a second door to the same items."""

    def __init__(self, items):
        self.items_ = items

    def __getitem__(self, key):
        return self.items_[key]

    def __setitem__(self, key, value):
        self.items_[key] = value

    def __delitem__(self, key):
        del self.items_[key]

    def __iter__(self):
        return iter(self.items_)

    def __len__(self):
        return len(self.items_)


def test_order_of_leaves_is_from_left_to_right():
    tree = {"b": [1, (2, 3)], "a": Named(image=4, label={"x": 5}), 3: Frozen(6, []), None: Sample((), 7)}
    assert list(leaves(tree)) == [
        (("b", 0), 1),
        (("b", 1, 0), 2),
        (("b", 1, 1), 3),
        (("a", 0), 4),
        (("a", 1, "x"), 5),
        ((3, "image"), 6),
        ((None, "label"), 7),
    ]


@pytest.mark.parametrize("empty", [(), [], {}, OrderedDict(), defaultdict(int), UserDict(), namedtuple("N", "")()])
def test_empty_containers(empty):
    assert list(leaves(empty)) == []
    again = replace_leaves([empty], lambda path, leaf: pytest.fail("there is no leaf"))[0]
    assert again == empty
    assert type(again) is type(empty)


def test_a_leaf_alone():
    assert list(leaves(5)) == [((), 5)]
    assert replace_leaves(5, lambda path, leaf: (path, leaf)) == ((), 5)


@pytest.mark.parametrize("leaf", ["text", b"bytes", None, range(3), {1}, Sample, Named, int])
def test_what_is_no_container_is_a_leaf(leaf):
    assert list(leaves([leaf])) == [((0,), leaf)]


def test_what_mappings_keep():
    new = replace_leaves(defaultdict(list, a=1), lambda path, leaf: leaf + 1)
    assert (new["a"], new["absent"]) == (2, [])
    tagged = replace_leaves(Tagged({"a": 1}, tag="kept"), lambda path, leaf: leaf + 1)
    assert (type(tagged), tagged["a"], tagged.tag) == (Tagged, 2, "kept")
    # Counter.update adds, so that a copy that is updated would hold 1 + 2.
    assert replace_leaves(Counter(a=1), lambda path, leaf: leaf + 1)["a"] == 2
    proxy = MappingProxyType({"a": 1})
    assert replace_leaves(proxy, lambda path, leaf: leaf + 1) == {"a": 2}


def test_a_mapping_whose_copies_share_its_items_is_left_alone():
    original = Shared({"image": 1})
    new = replace_leaves(original, lambda path, leaf: leaf + 1)
    assert new["image"] == 2
    assert original["image"] == 1


@pytest.mark.parametrize(("path", "name"), [
    ((), "batch"), ((0,), "batch[0]"), (("image",), "batch['image']"), ((1, "a", None), "batch[1]['a'][None]"),
])  # fmt: skip
def test_names_of_paths(path, name):
    assert path_name(path) == name


class Boxes(list):
    def __init__(self, values, size):
        super().__init__(values)
        self.size = size


class Pair(tuple):
    __slots__ = ()


def test_subclasses_of_lists_and_tuples_stay():
    boxes = replace_leaves(Boxes([1, 2], size=5), lambda path, leaf: leaf * 10)
    assert (type(boxes), boxes, boxes.size) == (Boxes, [10, 20], 5)
    pair = replace_leaves(Pair((1, 2)), lambda path, leaf: leaf * 10)
    assert (type(pair), pair) == (Pair, (10, 20))


def test_packed_sequences_are_leaves():
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(2), torch.ones(1)])
    assert [path for path, _ in leaves([packed])] == [(0,)]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ((-1, "image"), (1, 0)),
        ((1, "label"), (1, 1)),
        ((-3,), (-3,)),
        (("image",), ("image",)),
        ((0, "a", -1), (0, "a", 0)),
        ((0, "b"), (0, "b")),
        ((0, -1), (0, -1)),
        ((True,), (True,)),
    ],
)
def test_resolved_paths(path, expected):
    assert resolved([{"a": [5]}, Named(1, 2)], path) == expected
