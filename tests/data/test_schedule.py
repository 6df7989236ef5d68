from collections import Counter

import pytest

from fastfeed.data.schedule import MultiScale, ProgressiveSize


def test_progressive_sizes():
    size = ProgressiveSize(128, 224, epochs=4)
    assert [size(epoch, 0) for epoch in range(6)] == [128, 160, 192, 224, 224, 224]
    assert {size(1, step) for step in range(50)} == {160}
    assert [ProgressiveSize(224, 100, 3, multiple=10)(epoch, 0) for epoch in range(3)] == [220, 160, 100]
    assert ProgressiveSize(64, 64, 1)(0, 0) == ProgressiveSize(64, 64, 1)(5, 9) == 64
    assert ProgressiveSize(8, 8, 2)(0, 0) == 32  # never 0


def test_multi_scale_changes_every_few_steps_and_draws_evenly():
    sizes = (192, 224, (256, 320))
    size = MultiScale(sizes, every=4, seed=7)
    drawn = [size(epoch, 4 * step) for epoch in range(10) for step in range(300)]
    # 3000 draws of three: the standard deviation of a count is 26.
    assert all(abs(count - 1000) < 100 for count in Counter(drawn).values())
    assert set(drawn) == set(sizes)
    assert all(size(0, step) == size(0, step // 4 * 4) for step in range(100))
    assert [size(0, 4 * i) for i in range(30)] == [MultiScale(sizes, 4, 7)(0, 4 * i) for i in range(30)]
    assert [size(0, 4 * i) for i in range(30)] != [MultiScale(sizes, 4, 8)(0, 4 * i) for i in range(30)]
    assert [size(0, 4 * i) for i in range(30)] != [size(1, 4 * i) for i in range(30)]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ProgressiveSize(0, 224, 3), "first is 0"),
    (lambda: ProgressiveSize(128, 224, 0), "epochs is 0"),
    (lambda: MultiScale(()), "sizes is empty"),
    (lambda: MultiScale((224, 0)), "size is 0"),
    (lambda: MultiScale((224,), every=0), "every is 0"),
])  # fmt: skip
def test_bad_declarations(make, message):
    with pytest.raises(ValueError, match=message):
        make()
