"""Apart from test_finish.py, which is run on GPU machines that need not have hypothesis."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fastfeed.data.finish import DTYPES, SampleParameters
from tests.data.test_finish import FORMATS, check, random_images


@given(
    shape=st.tuples(st.integers(0, 4), st.integers(0, 70), st.integers(0, 70), st.sampled_from([1, 3, 4])),
    threads=st.integers(0, 5),
    mirror=st.booleans(),
    data=st.data(),
)
def test_any_size_and_number_of_threads(shape, threads, mirror, data):
    dtype, memory_format = data.draw(st.sampled_from(DTYPES)), data.draw(st.sampled_from(FORMATS))
    parameters = SampleParameters(shape[0], flip=torch.arange(shape[0]) % 2 == 0) if mirror else None
    check(random_images(*shape), parameters, dtype, memory_format, threads)
