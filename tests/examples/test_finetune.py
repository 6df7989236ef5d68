"""examples/finetune.py"""

import dataclasses
import re

import pytest
import torch

import fastfeed
from fastfeed import DataLoader, FolderSource, transforms
from tests.examples.scripts import functions, run, write_colours
from tests.images import write_folder
from tests.torchvision_ops import torchvision_or_skip

torchvision = torchvision_or_skip("torchvision")
pytestmark = pytest.mark.dali

OPTIONS = ["--no-pretrained", "--size", "32", "--batch-size", "12"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_colours(tmp_path_factory.mktemp("finetune") / "data", 30)


@pytest.mark.usefixtures("one_thread")
def test_learns_and_keeps_the_best_weights(data, tmp_path, capsys):
    output = tmp_path / "new" / "best.pt"
    arguments = ["--output", output, "--model", "resnet18", "--lr", "3e-3", "--epochs", "3", *OPTIONS]
    assert run("finetune.py", data, *arguments) is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "resnet18 on cpu: 72 training and 18 validation images"
    epochs = [re.fullmatch(r"epoch (\d): loss (.*), accuracy (.*)%( \(head alone\))?", line) for line in lines[1:4]]
    assert [bool(epoch[4]) for epoch in epochs] == [True, False, False]
    best = max(float(epoch[3]) for epoch in epochs)
    assert best > 60  # guessing: 33
    assert lines[-1] == f"best accuracy {best:.2f}%, weights in {output}"

    saved = torch.load(output)
    assert (saved["model"], saved["classes"], saved["size"]) == ("resnet18", ["blue", "green", "red"], 32)
    model = torchvision.models.resnet18(num_classes=3)
    model.load_state_dict(saved["weights"])
    model.eval()
    source = FolderSource(data)
    held_out = source.subset([i for i in range(90) if i % 5 == 4])
    ((images, target),) = DataLoader(held_out, 18, transform=transforms.eval(32), device="cpu")
    with torch.inference_mode():
        accuracy = (model(images).argmax(dim=1) == target).float().mean().item()
    assert abs(100 * accuracy - best) < 6  # one of 18 images may be otherwise in bfloat16


@pytest.mark.usefixtures("one_thread")
def test_a_frozen_backbone_stays_as_it_is(data, tmp_path, capsys):
    arguments = ["--model", "shufflenet_v2_x0_5", "--epochs", "1", "--output", tmp_path / "head.pt", *OPTIONS]
    assert run("finetune.py", data, *arguments) is None
    assert "(head alone)" in capsys.readouterr().out
    torch.manual_seed(0)
    before = torchvision.models.get_model("shufflenet_v2_x0_5").state_dict()
    after = torch.load(tmp_path / "head.pt")["weights"]
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["fc.weight", "fc.bias"]  # and no statistics of batch normalization


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("suggestion", [0.02, None])
def test_find_lr(suggestion, data, tmp_path, capsys, monkeypatch):
    lr_find, seen = fastfeed.optim.lr_find, []

    def short(model, optimizer, *arguments, **options):
        seen.append(optimizer)
        found = lr_find(model, optimizer, *arguments, **options, steps=10)
        return dataclasses.replace(found, suggestion=suggestion, reason="it does not learn")

    monkeypatch.setattr(fastfeed.optim, "lr_find", short)
    output = tmp_path / "found.pt"
    arguments = ["--model", "shufflenet_v2_x0_5", "--epochs", "1", "--output", output, "--find-lr", *OPTIONS]
    status = run("finetune.py", data, *arguments)
    if suggestion is None:
        assert status == "finetune.py: --find-lr found no learning rate: it does not learn"
        assert not output.exists()
        return
    assert status is None
    assert "Learning rate: 0.02" in capsys.readouterr().out
    assert [group["initial_lr"] for group in seen[0].param_groups] == pytest.approx([0.002, 0.02])


def test_images_are_split_by_folders_or_by_fifths_of_each_class(tmp_path):
    split = functions("finetune.py")["split"]
    write_folder(tmp_path / "a" / "train", {"cat": 3, "dog": 2})
    write_folder(tmp_path / "a" / "val", {"cat": 1, "dog": 2})
    assert [len(source) for source in split(tmp_path / "a")] == [5, 3]
    write_folder(tmp_path / "b", {"cat": 11, "dog": 9, "owl": 4})
    train, val = split(tmp_path / "b")
    assert (len(train), len(val)) == (21, 3)
    assert sorted(train.samples + val.samples) == FolderSource(tmp_path / "b").samples
    assert [target for _, target in val.samples] == [0, 0, 1]  # the few owls are all for training


@pytest.mark.parametrize(("there", "missing"), [("train", "val/"), ("val", "train/"), ("test", "train/ and no val/")])
def test_splits_are_no_classes(there, missing, tmp_path):
    split = functions("finetune.py")["split"]
    for name in {there, "test"}:
        write_folder(tmp_path / name, {"cat": 5, "dog": 5})
    with pytest.raises(ValueError, match=f"{tmp_path} has {there}/ but no {missing}: expected train/ and val/, or "):
        split(tmp_path)


@pytest.mark.filterwarnings("ignore:The default weight initialization of")
@pytest.mark.parametrize("name", ["convnext_tiny", "googlenet", "inception_v3", "mobilenet_v3_small", "vit_b_32"])
def test_heads_of_other_models(name):
    make_model = functions("finetune.py")["make_model"]
    with torch.device("meta"):
        model, head, size = make_model(name, 5, pretrained=False)
        assert model(torch.empty(2, 3, size, size)).shape == (2, 5)
    assert any(module is head for module in model.modules())


def test_help(capsys):
    assert run("finetune.py", "--help") == 0
    assert "--no-pretrained" in capsys.readouterr().out


OUT_OF_RANGE = [
    f"--{option}" for option in ("lr=nan", "lr=-1", "lr=0", "lr=inf", "weight-decay=nan", "seed=-1", f"seed={2**64}")
]


def test_wrong_input_is_an_error_of_one_line(data, tmp_path):
    write_folder(tmp_path / "other" / "train", {"cat": 3, "dog": 3})
    write_folder(tmp_path / "other" / "val", {"cat": 2, "owl": 1})
    write_folder(tmp_path / "few", {"cat": 2, "dog": 2})
    for arguments, message in (
        ([tmp_path / "nowhere"], f"no such folder: {tmp_path}/nowhere. Expected .*"),
        ([tmp_path / "other"], f"dog, owl: in only one of {tmp_path}/other/train and {tmp_path}/other/val"),
        ([tmp_path / "few"], f"{tmp_path}/few has no class of five images or more, .*"),
        ([data, "--output", tmp_path], f".*Is a directory: '{tmp_path}'"),
        ([data, "--output", tmp_path / "few" / "cat" / "000.jpg" / "x.pt"], ".*(File exists|Not a directory): .*"),
        ([data, "--model", "resnet17", "--no-pretrained"], "Unknown model resnet17"),
        ([data, "--model", "squeezenet1_1", "--no-pretrained"], "squeezenet1_1 has no linear layer .*"),
        *(([data, option], f".*{option.partition('=')[0]} is .*") for option in OUT_OF_RANGE),
        (
            [data, "--model", "vit_b_16", "--size", "32", "--no-pretrained"],
            "--size is 32, .*: .*Expected 224 but got 32!",
        ),
        (
            [data, "--model", "alexnet", "--size", "9", "--no-pretrained"],
            "--size is 9, which the model does not take: .*",
        ),
    ):
        assert re.fullmatch(f"finetune.py: {message}", run("finetune.py", *arguments))


@pytest.mark.parametrize("option", ["--epochs", "--batch-size", "--size"])
def test_numbers_are_positive(option, capsys):
    assert run("finetune.py", "data", option, "0") == 2
    assert f"{option}: invalid positive value: '0'" in capsys.readouterr().err
