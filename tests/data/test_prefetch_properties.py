import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfeed import Mix, Prefetcher
from fastfeed.data.finish import SampleParameters, finish_reference
from fastfeed.data.mix import draw_mix, mix_target

SIZE = st.integers(1, 9)
# Of memory, not of values: each is given [N, H, W, C] and returns the same pixels as [N, H, W, C] or [N, C, H, W].
LAYOUTS = {
    "NHWC": lambda x: x,
    "NCHW": lambda x: x.permute(0, 3, 1, 2).contiguous(),
    "NCHW, channels-last": lambda x: x.permute(0, 3, 1, 2),
    "rows of a larger image": lambda x: torch.cat([x, 255 - x], dim=1)[:, : x.shape[1]],
    "array": lambda x: x.numpy(),
    "array of mirrored memory": lambda x: x.numpy()[:, ::-1].copy()[:, ::-1],
}


@st.composite
def batches(draw):
    """Return images [N, H, W, C], how they are given, and the rest of the batch around them."""
    channels = draw(st.sampled_from([1, 3, 4]))
    out = []
    for _ in range(draw(st.integers(0, 7))):
        shape = (draw(st.integers(0, 5)), draw(SIZE), draw(SIZE), channels)
        generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        out.append((images, draw(st.sampled_from(sorted(LAYOUTS)))))
    return channels, out


@settings(max_examples=80, deadline=None)
@given(
    batches(),
    st.integers(1, 5),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.sampled_from([None, Mix(mixup=0.3), Mix(cutmix=1.0), Mix(0.5, 0.5, per="sample")]),
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 8), max_size=3),
)
def test_any_batches_by_any_consumer(drawn, depth, dtype, mix, seed, stops):
    """Every batch is the reference's, in order, whatever is drawn ahead, and however often a consumer left before."""
    channels, sources = drawn
    mean, std = (0.2, 0.4, 0.6, 0.8)[:channels], (0.1, 0.5, 0.3, 1.0)[:channels]
    loader = []
    for number, (images, layout) in enumerate(sources):
        target = torch.arange(len(images)) + 100 * number
        given = LAYOUTS[layout](images)
        loader.append({"rest": [number, {"target": target}], "image": given, "noise": torch.rand(2)})

    for layout in ("NHWC", "NCHW"):  # which cannot be seen of some shapes, [N, 3, H, 3] for one
        chosen = [i for i, (_, kind) in enumerate(sources) if kind.startswith("NCHW") == (layout == "NCHW")]
        data = Prefetcher(
            [loader[i] for i in chosen], "cpu", dtype=dtype, mean=mean, std=std, mix=mix, depth=depth, seed=seed,
            layout=layout, target=None if mix is None else ("rest", 1, "target"), image="image", num_threads=2,
        )  # fmt: skip
        for stop in stops:
            for _ in zip(range(stop), data, strict=False):
                pass
        epoch = data.epoch
        got = list(data)
        assert [batch["rest"][0] for batch in got] == chosen
        for position, (batch, i) in enumerate(zip(got, chosen, strict=True)):
            images, target = sources[i][0], loader[i]["rest"][1]["target"]
            parameters, expected = None, target
            if mix is not None:
                n, height, width, _ = images.shape
                plan = draw_mix(mix, n, height, width, seed=seed, epoch=epoch, batch=position)
                parameters = SampleParameters(n, partner=plan.partner, weight=plan.weight, cut=plan.box)
                expected = mix_target(target, plan)
            assert torch.equal(batch["image"], finish_reference(images, parameters, mean, std, dtype))
            assert batch["noise"] is loader[i]["noise"]
            new = batch["rest"][1]["target"]
            assert torch.equal(new, expected) if mix is None else all(map(torch.equal, new, expected))
