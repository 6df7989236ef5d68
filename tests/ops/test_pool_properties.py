"""Apart from the pools' other tests, which are run on GPU machines that need not have hypothesis."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops import test_avg_max_pool as avg_max_pool
from tests.ops import test_gem_pool as gem_pool

SHAPES = st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12))
FORMATS = st.sampled_from([torch.contiguous_format, torch.channels_last])
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


@pytest.mark.filterwarnings("ignore:divide by zero encountered in log2:RuntimeWarning")
@settings(max_examples=25, deadline=None, derandomize=True)
@given(shape=SHAPES, memory_format=FORMATS, dtype=DTYPES, p=st.floats(0.3, 12.0), scale=st.sampled_from([0.01, 1, 100]))
def test_gem_pool(shape, memory_format, dtype, p, scale):
    x = gem_pool.make(shape, dtype, memory_format) * scale
    gem_pool.check(x, torch.tensor([p], device=x.device))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(shape=SHAPES, memory_format=FORMATS, dtype=DTYPES, levels=st.integers(1, 9))
def test_avg_max_pool(shape, memory_format, dtype, levels):
    """Of few levels, so that there are ties."""
    x = avg_max_pool.make(shape, dtype, memory_format)
    avg_max_pool.check((x * levels).round() / levels)
