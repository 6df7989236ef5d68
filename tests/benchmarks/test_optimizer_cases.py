"""The cases of optimizers: their models of the work, and that their checks see what is wrong."""

from functools import partial

import pytest
import torch

import fastfeed.optim
from benchmarks import networks
from benchmarks.case import Options
from benchmarks.cases.optimizers import AdamWCase, EagerLAMB, EagerLion, LAMBCase, LionCase, SGDCase
from benchmarks.cases.optimizers_bf16 import AdamWMasterCase, AdamWStochasticCase
from benchmarks.cases.optimizers_full_step import EPS, SCALE, FullStepCase
from benchmarks.peers import Absent
from benchmarks.results import COMPILED
from tests.benchmarks.test_cases import assert_sees

CPU = Options(torch.device("cpu"), quick=True)
FULL = Options(torch.device("cpu"))
GPU = Options(torch.device("cuda"), quick=True)
CASES = [AdamWCase, SGDCase, LAMBCase, LionCase, AdamWMasterCase, AdamWStochasticCase, FullStepCase]
TIMM = {"timm", "timm foreach"}  # which need not be installed


@pytest.mark.parametrize(
    ("network", "tensors", "parameters"),
    [
        # As torchvision's documentation and papers have them.
        ("squeezenet", 52, 1_235_496),
        ("resnet18", 62, 11_689_512),
        ("resnet50", 161, 25_557_032),
        ("vit_b16", 152, 86_567_656),
        ("vit_l16", 296, 304_326_632),
        ("1000x1000", 1000, 1_000_000),
    ],
)
def test_networks(network, tensors, parameters):
    shapes = networks.NETWORKS[network]
    assert len(shapes) == tensors
    assert sum(torch.Size(shape).numel() for shape in shapes) == parameters


@pytest.mark.parametrize(
    ("case", "network", "dtype", "bytes_per_run", "flops_per_run"),
    [
        # 9 elements: 4 numbers read and 3 written each, of 4 or 2 bytes; 13 operations each.
        (AdamWCase, "tiny", torch.float32, 252, 117),
        (AdamWCase, "tiny", torch.bfloat16, 126, 117),
        # 1,235,496 elements.
        (AdamWCase, "squeezenet", torch.float32, 34_593_888, 16_061_448),
        (AdamWCase, "squeezenet", torch.bfloat16, 17_296_944, 16_061_448),
        # 20, 40 and 20 bytes for each.
        (SGDCase, "tiny", torch.float32, 180, 54),
        (LAMBCase, "tiny", torch.float32, 360, 171),
        (LionCase, "tiny", torch.float32, 180, 90),
        # 28, in whatever dtypes, and 14.
        (AdamWMasterCase, "tiny", torch.bfloat16, 252, 117),
        (AdamWStochasticCase, "tiny", torch.bfloat16, 126, 117),
        # 28 for AdamW, 4 for the norm, and 8 for the average.
        (FullStepCase, "tiny", torch.float32, 360, 171),
    ],
)
def test_model(case, network, dtype, bytes_per_run, flops_per_run, tiny):
    instance = case(CPU, network, dtype)
    assert (instance.bytes_per_run, instance.flops_per_run) == (bytes_per_run, flops_per_run)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_large_networks_are_for_gpus(case):
    networks_on = {
        device: {row["shape"] for row in case.parameters(Options(torch.device(device)))} for device in ("cpu", "cuda")
    }
    assert networks_on["cuda"] - networks_on["cpu"] == {"vit_b16", "vit_l16"}
    assert {"resnet50", "1000x1000"} <= networks_on["cpu"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_and_parameters_are_left_as_they_were(case, tiny):
    instance, fresh = case(CPU, tiny, case.dtype), case(CPU, tiny, case.dtype)
    instance.check("fastfeed")
    for mine, untouched in ((instance.grads, fresh.grads), (instance.params, fresh.params)):
        assert all(map(torch.equal, mine, untouched))


def test_adamw_check(tiny):
    optimizer = torch.optim.AdamW

    def twice(case):
        run = case.stepper(optimizer)
        return lambda: (run(), run())[1]

    absent = assert_sees(
        AdamWCase(CPU, tiny, torch.float32),
        no_decay=lambda case: case.stepper(lambda params, lr, weight_decay: optimizer(params, lr, weight_decay=0)),
        decay_of_the_gradient=lambda case: case.stepper(torch.optim.Adam),
        no_step=lambda case: lambda: case.params,
        two_steps=twice,
        other_beta=lambda case: case.stepper(partial(optimizer, betas=(0.9, 0.99))),
    )
    assert absent == {"apex"}


def test_sgd_check(tiny):
    optimizer = torch.optim.SGD
    absent = assert_sees(
        SGDCase(CPU, tiny, torch.float32),
        no_momentum=lambda case: case.stepper(optimizer),
        other_momentum=lambda case: case.stepper(optimizer, momentum=0.91),
        nesterov=lambda case: case.stepper(optimizer, momentum=0.9, nesterov=True),
        dampening=lambda case: case.stepper(optimizer, momentum=0.9, dampening=0.1),
        no_decay=lambda case: case.stepper(lambda params, lr, weight_decay: optimizer(params, lr, momentum=0.9)),
    )
    assert absent == set()


def test_lamb_check(tiny):
    ours = fastfeed.optim.LAMB

    class WithoutRatios(EagerLAMB):
        def update(self, grads):
            before = [param.clone() for param in self.params]
            super().update(grads)
            for param, old in zip(self.params, before, strict=True):
                step = param - old
                param.copy_(old + step * self.lr * len(step) ** 0.5 / step.norm())

    absent = assert_sees(
        LAMBCase(CPU, tiny, torch.float32),
        without_ratios=lambda case: case.stepper(WithoutRatios),
        no_decay=lambda case: case.stepper(
            lambda params, lr, weight_decay: ours(params, lr, weight_decay=0, always_adapt=True)
        ),
        other_first_beta=lambda case: case.stepper(ours, betas=(0.89, 0.999)),
        other_second_beta=lambda case: case.stepper(ours, betas=(0.9, 0.998)),
        clipped=lambda case: case.stepper(ours, max_grad_norm=1e-3),
        adamw=lambda case: case.stepper(torch.optim.AdamW),
    )
    assert absent - TIMM == {"apex"}


def test_lion_check(tiny):
    ours = fastfeed.optim.Lion
    betas = [(0.89, 0.99), (0.91, 0.99), (0.9, 0.989), (0.9, 0.991)]
    absent = assert_sees(
        LionCase(CPU, tiny, torch.float32),
        no_decay=lambda case: case.stepper(lambda params, lr, weight_decay: EagerLion(params, lr, 0.0)),
        other_rate=lambda case: case.stepper(lambda params, lr, weight_decay: ours(params, 1.001 * lr, (0.9, 0.99))),
        **{f"betas_{pair}": lambda case, pair=pair: case.stepper(ours, betas=pair) for pair in betas},
    )
    assert absent - TIMM == set()


def master_step(case, optimizer=torch.optim.AdamW, copied=True, dtype=torch.float32):
    """A provider of masters that are stepped by another optimizer."""
    masters = [param.to(dtype, copy=True).requires_grad_() for param in case.params]
    optimizer = optimizer(masters, lr=1e-2, weight_decay=1e-2)
    params = [param.clone() for param in case.params]

    def run():
        for master, grad in zip(masters, case.grads, strict=True):
            master.grad = grad.to(dtype)
        optimizer.step()
        if copied:
            torch._foreach_copy_(params, [master.detach() for master in masters])
        return lambda: masters, params

    return run


def test_adamw_master_check(tiny):
    absent = assert_sees(
        AdamWMasterCase(CPU, tiny, torch.bfloat16),
        not_copied=partial(master_step, copied=False),
        decay_of_the_gradient=partial(master_step, optimizer=torch.optim.Adam),
        other_beta=partial(master_step, optimizer=partial(torch.optim.AdamW, betas=(0.9, 0.99))),
        masters_in_bf16=partial(master_step, dtype=torch.bfloat16),
    )
    assert absent == set()


def test_adamw_stochastic_check(monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "small", [(100, 120), (100,)])
    case = AdamWStochasticCase(CPU, "small", torch.bfloat16)
    ours = partial(fastfeed.optim.AdamW, stochastic_rounding=True)
    wrong = {
        "nearest": lambda case: case.stepper(torch.optim.AdamW),
        "more_decay": lambda case: case.stepper(lambda params, lr, weight_decay: ours(params, lr, weight_decay=0.1)),
        "other_rate": lambda case: case.stepper(lambda params, lr, weight_decay: ours(params, 0.95 * lr)),
        "other_beta": lambda case: case.stepper(ours, betas=(0.0, 0.999)),
        "no_step": lambda case: lambda: case.params,
    }
    case.stochastic = case.stochastic | wrong.keys()
    assert assert_sees(case, **wrong) == {"torchao"}


def full_step(case, max_norm=1.0, scale=SCALE, ema_decay=0.99, found_inf=True):
    """A provider that does something else than the case."""
    params = case.leaves()
    optimizer = fastfeed.optim.AdamW(
        params, lr=1e-2, eps=EPS, weight_decay=1e-2, max_grad_norm=max_norm * case.max_norm, ema_decay=ema_decay
    )
    optimizer.grad_scale = torch.tensor(scale)
    optimizer.found_inf = case.found_inf if found_inf else None

    def run():
        optimizer.step()
        return params, lambda: [optimizer.state[param]["ema"] for param in params]

    return run


def test_full_step_check(tiny):
    absent = assert_sees(
        FullStepCase(CPU, tiny, torch.float32),
        not_unscaled=partial(full_step, scale=1.0),
        unscaled_for_the_norm_alone=partial(full_step, scale=1.0, max_norm=SCALE),
        not_clipped=partial(full_step, max_norm=1e6),
        clipped_too_much=partial(full_step, max_norm=0.5),
        other_average=partial(full_step, ema_decay=0.98),
        no_average=partial(full_step, ema_decay=1.0),
        steps_by_infinite_gradients=partial(full_step, found_inf=False),
    )
    assert absent == set()


def test_every_full_step_does_the_same_work(tiny):
    """In separate steps too, where gradients are changed in place: they are halved and doubled, run after run."""
    case = FullStepCase(CPU, tiny, torch.float32)
    for provider in case.providers:
        run = case.providers[provider](case)
        for _ in range(20):
            params, _ = run()
            norm = torch.nn.utils.get_total_norm([param.grad for param in params])
            # Before it is unscaled it is more than half, and so it is clipped.
            assert 0.6 * case.max_norm < norm / SCALE <= 2.1 * case.max_norm


@pytest.mark.slow
@pytest.mark.parametrize("case", [AdamWCase, SGDCase], ids=lambda case: case.name)
def test_compiled(case, graphs, tiny):
    case(FULL, tiny, torch.float32).check(COMPILED)
    assert graphs() == case.graphs
    with pytest.raises(Absent, match="--quick"):
        case(CPU, tiny, torch.float32).check(COMPILED)


def test_a_quick_run_on_a_gpu_compiles_no_step_of_many_tensors():
    instance = AdamWCase(CPU, "1000x1000", torch.float32)
    instance.options = GPU
    with pytest.raises(Absent, match="left out of --quick: compiling a step of 1000 tensors"):
        instance.check(COMPILED)


@pytest.mark.parametrize("case", [AdamWCase, SGDCase], ids=lambda case: case.name)
def test_compiled_does_not_run_eagerly(case, tiny):
    run = case.providers[COMPILED](case(FULL, tiny, torch.float32))
    with torch.compiler.set_stance("force_eager"), pytest.raises(RuntimeError, match="made 0 graphs of the step"):
        run()


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_on_a_gpu(case, tiny):
    instance = case(GPU, tiny, case.dtype)
    for provider in case.providers.keys() - {COMPILED}:
        try:
            instance.check(provider)
        except Absent:
            assert provider not in ("fastfeed", case.baseline)
