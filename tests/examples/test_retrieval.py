"""examples/retrieval.py"""

import re

import pytest
import torch

from tests.examples.scripts import functions, run, write_colours
from tests.images import write_folder
from tests.torchvision_ops import torchvision_or_skip

torchvision_or_skip("torchvision")
pytestmark = pytest.mark.dali


@pytest.mark.usefixtures("one_thread")
def test_finds_images_of_classes_that_it_was_not_trained_on(tmp_path, capsys):
    write_colours(tmp_path / "data" / "train", 24)
    write_colours(tmp_path / "data" / "val", 6, names=("green", "red", "yellow"))
    write_folder(tmp_path / "data" / "val", {"owl": 1})
    output = tmp_path / "new" / "retrieval.pt"
    options = "--no-pretrained --model resnet18 --size 48 --batch-size 16 --dim 16 --lr 1e-3 --epochs 3 --k 1 4"
    assert run("retrieval.py", tmp_path / "data", "--output", output, *options.split()) is None
    lines = capsys.readouterr().out.splitlines()
    losses = [float(re.fullmatch(r"epoch \d: loss (.*)", line)[1]) for line in lines[:-1]]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    last = r"recall@1 (.*)%, recall@4 (.*)% of 18 images; 1 have no other of their class"
    first, fourth = map(float, re.fullmatch(last, lines[-1]).groups())
    assert 60 < first <= fourth <= 100  # guessing: 5 of 17 others, 29

    saved = torch.load(output)
    assert saved["weights"]["classes"].shape == (3, 16)
    assert (saved["weights"]["classes"].norm(dim=1) < 3).all()  # about 1
    assert saved["weights"]["backbone.avgpool.p"] != 3  # learnt


def test_recall_is_that_of_a_plain_search():
    recall = functions("retrieval.py")["recall"]
    torch.manual_seed(0)
    classes = torch.randint(0, 300, (1500,))  # in more than one part
    embeddings = torch.nn.functional.normalize(torch.randn(1500, 4) + 3 * torch.randn(300, 4)[classes], dim=1)
    cosines = embeddings @ embeddings.T
    ks, found = [1, 3, 10], {1: 0, 3: 0, 10: 0}
    for query, row in enumerate(cosines):
        order = [i for i in row.argsort(descending=True).tolist() if i != query]
        for k in ks:
            found[k] += any(classes[i] == classes[query] for i in order[:k])
    shares = recall(embeddings, classes, ks)
    queries = sum((classes == of_query).sum() > 1 for of_query in classes).item()
    assert 1024 < queries < 1500
    assert shares == pytest.approx([found[k] / queries for k in ks], abs=1e-6)
    assert 0.02 < shares[0] < shares[1] < shares[2] < 0.98


def test_an_image_that_has_no_other_of_its_class_is_no_query():
    recall = functions("retrieval.py")["recall"]
    embeddings = torch.eye(4)[[0, 0, 1, 2, 2, 1]]
    classes = torch.tensor([0, 0, 3, 1, 1, 1])  # the last one's nearest is of class 3
    assert recall(embeddings, classes, [1, 5]) == pytest.approx([4 / 5, 1])


def test_an_embedding_is_that_of_both_mirror_images():
    embed = functions("retrieval.py")["embed"]

    class Loader(list):
        device = torch.device("cpu")

    images = torch.rand(5, 3, 4, 4)
    views = torch.stack([images, images.flip(3)], dim=1)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 7))
    loader = Loader([(views[:3], torch.tensor([0, 1, 2])), (views[3:], torch.tensor([1, 1]))])
    embeddings, classes = embed(model, loader)
    mirrored, _ = embed(model, Loader((batch.flip(1), target) for batch, target in loader))
    assert classes.tolist() == [0, 1, 2, 1, 1]
    assert embeddings.shape == (5, 7)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5), check_dtype=False)
    torch.testing.assert_close(embeddings, mirrored)


def test_help(capsys):
    assert run("retrieval.py", "--help") == 0
    assert "--dim" in capsys.readouterr().out


def test_wrong_input_is_an_error_of_one_line(tmp_path):
    write_folder(tmp_path / "train", {"cat": 3, "dog": 3})
    write_folder(tmp_path / "val", {"owl": 2, "fox": 2})
    for name, counts in {"one": {"owl": 3}, "alone": {"owl": 1, "fox": 1}}.items():
        write_folder(tmp_path / name / "val", counts)
        (tmp_path / name / "train").symlink_to(tmp_path / "train")
    for arguments, message in (
        ([tmp_path / "nowhere"], f"no such folder: {tmp_path}/nowhere/train. Expected .*"),
        (
            [tmp_path, "--model", "vgg11", "--k", "1"],
            "--model is vgg11; expected one of torchvision's ResNets, as resnet50",
        ),
        ([tmp_path, "--model", "resnet18"], f"{tmp_path}/val has 4 images; expected more than --k, 8"),
        ([tmp_path / "one"], f"{tmp_path}/one/val has one class alone; expected two or more"),
        ([tmp_path / "alone"], f"{tmp_path}/alone/val has one image of each class; .*"),
        ([tmp_path, "--k", "1", "--output", tmp_path], f".*Is a directory: '{tmp_path}'"),
        *(([tmp_path, f"--lr={value}"], "--lr is more than 0, .*") for value in ("nan", "-1", "0", "inf")),
        ([tmp_path, "--seed=-1"], ".*--seed is from 0 to .*"),
    ):
        assert re.fullmatch(f"retrieval.py: {message}", run("retrieval.py", *arguments, "--no-pretrained"))


@pytest.mark.parametrize("option", ["--epochs", "--batch-size", "--size", "--dim", "--k"])
def test_numbers_are_positive(option, capsys):
    assert run("retrieval.py", "data", option, "0") == 2
    assert f"{option}: invalid positive value: '0'" in capsys.readouterr().err
