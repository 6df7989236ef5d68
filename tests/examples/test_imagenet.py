"""examples/imagenet.py: a run that goes on where it was killed is the run that was not."""

import math
import re
import shutil

import pytest
import torch

from fastfeed import DataLoader, transforms
from tests.examples.scripts import EXAMPLES, finish, run, start
from tests.images import write_folder
from tests.torchvision_ops import torchvision_or_skip

torchvision = torchvision_or_skip("torchvision")
pytestmark = pytest.mark.dali

# The model has dropout and batch normalization. 21 images: five steps in each of two epochs, and one image left over.
MODEL, IMAGES, BATCH, STEPS, LR = "mnasnet0_5", 21, 4, 10, 0.001
OPTIONS = f"--model {MODEL} --size 32 --batch-size {BATCH} --epochs 2 --lr {LR} --ema-decay 0.5"
OPTIONS = f"{OPTIONS} --save-every 2 --log-every 1".split()
# Files are renamed after steps 2 and 4, twice at the end of the first epoch, and after steps 6 and 8.
AFTER_6, AFTER_8 = 5, 6


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data = tmp_path_factory.mktemp("imagenet")
    write_folder(data / "train", {"cat": 11, "dog": 10})
    write_folder(data / "val", {"cat": 4, "dog": 3})
    return data


@pytest.fixture(scope="module")
def runs(data):
    """Return the lines of four runs: not interrupted; gone on from its checkpoint; two ranks, killed; one after them.

    The outputs are folders in `data` of the same names, and what was read is in files there.
    """
    whole = start(
        "imagenet.py", data, "--output", data / "whole", *OPTIONS,
        EXAMPLES_KEEP_AT=AFTER_6, EXAMPLES_READS=data / "whole.txt",
    )  # fmt: skip
    killed = start("imagenet.py", data, "--output", data / "killed", *OPTIONS, ranks=2, EXAMPLES_DIE_AT=AFTER_8)
    lines = {"whole": finish(whole), "killed": finish(killed, status=1)}
    (data / "resumed").mkdir()
    shutil.copy(data / "whole" / "kept.pt", data / "resumed" / "checkpoint.pt")
    shutil.copytree(data / "killed", data / "one")
    processes = {
        name: start(
            "imagenet.py", data, "--output", data / name, *OPTIONS, EXAMPLES_READS=data / f"{name}.txt"
        )
        for name in ("resumed", "one")
    }  # fmt: skip
    return lines | {name: finish(process) for name, process in processes.items()}


def load(path):
    return torch.load(path, weights_only=True)


def steps_of(lines):
    """Return [(step, loss, lr)] as they were printed."""
    found = [
        re.fullmatch(r"step (\d+): loss (\d+\.\d{4}) \(rank 0\), [\d,]+ img/s, lr (\d\.\d{6})", line) for line in lines
    ]
    return [match.groups() for match in found if match]


def accuracies(lines):
    return [line.partition("accuracy ")[2].split("%")[0] for line in lines if line.startswith("epoch")]


def assert_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    else:
        assert a == b


@pytest.mark.slow
def test_trains(runs, data):
    lines = runs["whole"]
    assert lines[0] == f"{MODEL} on 1 x cpu, 0 of {STEPS} steps done"
    cosine = [f"{LR * 0.5 * (1 + math.cos(math.pi * step / STEPS)):.6f}" for step in range(STEPS)]
    assert [(int(step), lr) for step, _, lr in steps_of(lines)] == list(enumerate(cosine))
    assert len(accuracies(lines)) == 2

    state, averaged = load(data / "whole" / "checkpoint.pt"), load(data / "whole" / "model.pt")["model"]
    assert (state["loader"]["epoch"], state["loader"]["consumed"]) == (2, 0)
    matrices, vectors = state["optimizer"]["param_groups"]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (2e-5, 0)
    ema = {index: value["ema"] for index, value in state["optimizer"]["state"].items()}
    assert {ema[i].ndim for i in vectors["params"]} == {1}
    assert {ema[i].ndim for i in matrices["params"]} == {2, 4}
    # What is there to be used are the averages, and their own statistics.
    first = next(iter(averaged))
    assert torch.equal(averaged[first], ema[0])
    assert not torch.equal(averaged[first], state["model"][first])
    assert averaged["layers.1.num_batches_tracked"] == IMAGES // BATCH
    torchvision.models.get_model(MODEL, num_classes=2).load_state_dict(averaged)


@pytest.mark.slow
def test_goes_on_as_if_it_had_not_been_interrupted(runs, data):
    assert runs["resumed"][0] == f"{MODEL} on 1 x cpu, 6 of {STEPS} steps done"
    assert steps_of(runs["resumed"]) == steps_of(runs["whole"])[6:]
    assert accuracies(runs["resumed"]) == accuracies(runs["whole"])[1:]
    for name in ("model.pt", "checkpoint.pt"):  # to the bit, with dropout, in bfloat16, by one thread
        assert_equal(load(data / "resumed" / name), load(data / "whole" / name))


@pytest.mark.slow
def test_a_checkpoint_is_whole_when_the_process_is_killed(runs, data):
    assert (data / "killed" / "checkpoint.tmp").exists()  # of step 8
    state = load(data / "killed" / "checkpoint.pt")
    assert state["schedule"]["last_epoch"] == 6
    assert (state["loader"]["epoch"], state["loader"]["consumed"]) == (1, BATCH)
    assert [step for step, _, _ in steps_of(runs["killed"])] == list("01234567")


@pytest.mark.slow
def test_goes_on_with_the_samples_that_are_left_on_another_number_of_ranks(runs, data):
    assert runs["killed"][0] == f"{MODEL} on 2 x cpu, 0 of {STEPS} steps done"
    assert runs["one"][0] == f"{MODEL} on 1 x cpu, 6 of {STEPS} steps done"
    assert [(step, lr) for step, _, lr in steps_of(runs["one"])] == [
        (step, lr) for step, _, lr in steps_of(runs["whole"])[6:]
    ]
    whole, one = ((data / f"{name}.txt").read_text().splitlines() for name in ("whole", "one"))
    # The four steps that were left, the images for the statistics, and all of val/.
    left = BATCH * (STEPS - 6)
    assert one == whole[-len(one) :]
    assert len(one) >= left + BATCH * (IMAGES // BATCH) + 7
    assert len(set(one[:left])) == left  # of one epoch
    assert one[-7:] == [f"val {i}" for i in range(7)]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_ranks_evaluate_every_image_once(runs, data):
    """Seven images on two ranks: one of them fills up the last batch, and must not count."""
    model = torchvision.models.get_model(MODEL, num_classes=2)
    model.load_state_dict(load(data / "killed" / "model.pt")["model"])
    model.eval()
    right = {}
    for rank in range(2):
        loader = DataLoader(
            data / "val", BATCH // 2, transform=transforms.eval(32), dtype=torch.bfloat16, info=True,
            rank=rank, world_size=2, device="cpu",
        )  # fmt: skip
        for images, target, info in loader:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                hits = model(images).argmax(dim=1) == target
            right.update(zip(info.path, hits.tolist(), strict=True))
    assert len(right) == 7
    assert accuracies(runs["killed"]) == [f"{100 * sum(right.values()) / 7:.2f}"]


def test_help(capsys):
    assert run("imagenet.py", "--help") == 0
    printed = capsys.readouterr().out
    for option in ("--model", "--epochs", "--save-every"):
        assert option in printed


POSITIVE = ["--epochs", "--batch-size", "--size", "--save-every", "--log-every"]
OUT_OF_RANGE = ["--lr=nan", "--lr=-1", "--lr=0", "--lr=inf", "--ema-decay=nan", "--ema-decay=1.5", "--seed=-1"]


def test_wrong_input_is_an_error_of_one_line(data, tmp_path):
    write_folder(tmp_path / "train", {"cat": 3, "dog": 3})
    write_folder(tmp_path / "val", {"cat": 2, "owl": 1})
    for arguments, message in (
        ([data / "nowhere"], f"no such folder: {data}/nowhere/train. Expected .*"),
        ([tmp_path], f"dog, owl: in only one of {tmp_path}/train and {tmp_path}/val"),
        ([data, "--model", "resnet17"], "Unknown model resnet17"),
        ([data, "--batch-size", "22"], "--batch-size: expected a multiple of 1 ranks, at most 21 images"),
        (
            [data, "--batch-size", "7", "--output", data / "train" / "cat" / "000.jpg"],
            ".*(File exists|Not a directory): .*",
        ),
        *(([data, f"{option}=0"], f".*{option}.* 1 or more") for option in POSITIVE),
        *(([data, option], f".*{option.partition('=')[0]} is .*") for option in OUT_OF_RANGE),
        ([data, "--batch-size", "7", "--model", "vit_b_16", "--size", "32"], ".*Expected 224 but got 32!"),
        ([data, "--batch-size", "7", "--model", "alexnet", "--size", "9"], ".* size .*"),
    ):
        assert re.fullmatch(f"imagenet.py: {message}", run("imagenet.py", *arguments))


@pytest.mark.usefixtures("one_thread")
def test_a_checkpoint_of_other_settings_is_refused(data, tmp_path, capsys):
    def start_again(root=data, **changed):
        settings = {"epochs": 1, "batch-size": 10, "model": "shufflenet_v2_x0_5", "size": 32} | changed
        options = [f"--{key}={value}" for key, value in settings.items()]
        return run("imagenet.py", root, "--output", tmp_path / "output", *options)

    assert start_again() is None
    path = tmp_path / "output" / "checkpoint.pt"
    before = path.read_bytes()
    write_folder(tmp_path / "more" / "train", {"cat": 11, "dog": 10, "owl": 1})
    write_folder(tmp_path / "more" / "val", {"cat": 1, "dog": 1, "owl": 1})
    write_folder(tmp_path / "fewer" / "train", {"cat": 11, "dog": 9})
    write_folder(tmp_path / "fewer" / "val", {"cat": 1, "dog": 1})
    for changed, message in (
        ({"epochs": 3}, "is of epochs 1, this is epochs 3"),
        ({"batch-size": 20}, "is of batch_size 10, this is batch_size 20"),
        ({"lr": 0.1}, "is of lr 0.125, this is lr 0.1"),
        ({"model": "resnet18"}, "is of model shufflenet_v2_x0_5, this is model resnet18"),
        ({"size": 64}, "is of size 32, this is size 64"),
        ({"seed": 1}, "is of seed 0, this is seed 1"),
        ({"ema-decay": 0.9}, "is of ema_decay 0.999, this is ema_decay 0.9"),
        ({"root": tmp_path / "more"}, "is of classes 2, this is classes 3"),
        ({"root": tmp_path / "fewer"}, "is of images 21, this is images 20"),
    ):
        assert start_again(**changed) == f"imagenet.py: {path} {message}: choose another --output"
    assert path.read_bytes() == before

    capsys.readouterr()
    assert start_again(**{"save-every": 7, "log-every": 7}) is None
    assert capsys.readouterr().out == "shufflenet_v2_x0_5 on 1 x cpu, 2 of 2 steps done\n"


def test_is_short():
    assert len((EXAMPLES / "imagenet.py").read_text().splitlines()) < 150
