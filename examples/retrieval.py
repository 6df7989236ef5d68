"""Train a ResNet for image retrieval, and measure recall@k: does a similar image come first?

    python examples/retrieval.py products

Needs fastfeed and torchvision, and one GPU or the CPU. The folder has train/<class>/<image> and val/<class>/<image> in
it. The classes of val/ may be others than those of train/, as is usual for retrieval: no query's class is known then.

The embedding is what generalized-mean pooling and a linear layer make of the backbone's last feature map, of length 1.
It is trained as a classifier by the cosines to one learnt vector per class: Zhai and Wu, Classification is a Strong
Baseline for Deep Metric Learning, 2018 (https://arxiv.org/abs/1811.12649). Recall@k is the share of the images of val/
that have one of their own class among the k nearest of all others, by the mean embedding of an image and its mirror
image; those that have no other of their class do not count.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import fastfeed
from fastfeed import FolderSource, transforms


class Embedding(nn.Module):
    """Images [N, 3, H, W] to vectors of length 1, [N, dim] float32, and those to logits."""

    def __init__(self, name: str, dim: int, num_classes: int, *, pretrained: bool, temperature: float = 0.05) -> None:
        super().__init__()
        self.backbone = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
        if not isinstance(self.backbone, torchvision.models.ResNet):
            raise ValueError(f"--model is {name}; expected one of torchvision's ResNets, as resnet50")
        self.backbone.avgpool = fastfeed.nn.GeMPool2d(p=3.0)
        self.backbone.fc = nn.Linear(self.backbone.fc.in_features, dim)
        self.classes = nn.Parameter(torch.randn(num_classes, dim) / dim**0.5)  # of length 1: easily turned
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings."""
        return F.normalize(self.backbone(images).float(), dim=1)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the cosines to the classes' vectors, over the temperature: [N, num_classes]."""
        return embeddings @ F.normalize(self.classes, dim=1).T / self.temperature


def main(args: argparse.Namespace) -> None:
    try:
        if not (0 < args.lr < torch.inf and 0 <= args.seed < 2**63):
            raise ValueError("--lr is more than 0, --seed is from 0 to 2**63 - 1")
        torch.manual_seed(args.seed)
        train, val = FolderSource(args.data / "train"), FolderSource(args.data / "val")
        for source in (train, val):
            if len(source.classes) < 2:
                raise ValueError(f"{source.root} has one class alone; expected two or more")
        alone = int((np.bincount(val.labels) == 1).sum())
        if alone == len(val):
            raise ValueError(f"{val.root} has one image of each class; expected another one to be found")
        if len(val) <= max(args.k):
            raise ValueError(f"{val.root} has {len(val)} images; expected more than --k, {max(args.k)}")
        make_writable(args.output)
        model = Embedding(args.model, args.dim, len(train.classes), pretrained=args.pretrained)
    except (OSError, ValueError) as error:
        sys.exit(f"retrieval.py: {error}")
    batch_size = min(args.batch_size, len(train))
    loader = fastfeed.DataLoader(
        train,
        batch_size,
        shuffle=True,
        drop_last=True,
        transform=transforms.train(args.size, scale=(0.16, 1.0)),
        dtype=torch.bfloat16,
        seed=args.seed,
    )
    val_loader = fastfeed.DataLoader(
        val,
        batch_size,
        transform=transforms.eval(args.size),
        tta=transforms.TTA(horizontal_flip=True),
        dtype=torch.bfloat16,
    )
    model = model.to(loader.device, memory_format=torch.channels_last)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]  # biases, the scales of norms, the exponent of the pool
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = fastfeed.optim.AdamW(groups, lr=args.lr)
    total = args.epochs * len(loader)
    schedule = fastfeed.optim.warmup_cosine(optimizer, warmup_steps=total // 10, total_steps=total)

    for epoch in range(args.epochs):
        model.train()
        losses = []
        for images, target in loader:
            with torch.autocast(loader.device.type, torch.bfloat16):
                embeddings = model(images)
            # Outside of autocast: in bfloat16 close cosines would be the same.
            loss = fastfeed.functional.cross_entropy(model.logits(embeddings), target, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        print(f"epoch {epoch}: loss {float(torch.stack(losses).mean()):.4f}", flush=True)

    torch.save({"model": args.model, "dim": args.dim, "weights": model.state_dict()}, args.output)
    recalls = recall(*embed(model, val_loader), args.k)
    shares = ", ".join(f"recall@{k} {share:.2%}" for k, share in zip(args.k, recalls, strict=True))
    print(f"{shares} of {len(val) - alone} images; {alone} have no other of their class")


@torch.inference_mode()
def embed(model: nn.Module, loader: fastfeed.DataLoader) -> tuple[Tensor, Tensor]:
    """Return the embeddings of all images, [M, dim], from the views of each, and their classes, [M]."""
    model.eval()
    embeddings, classes = [], []
    for views, target in loader:  # [N, V, 3, H, W]
        with torch.autocast(loader.device.type, torch.bfloat16):
            of_views = model(views.flatten(0, 1))
        embeddings.append(F.normalize(of_views.unflatten(0, views.shape[:2]).mean(dim=1), dim=1))
        classes.append(target)
    return torch.cat(embeddings), torch.cat(classes)


def recall(embeddings: Tensor, classes: Tensor, ks: list[int]) -> list[float]:
    """Return, for each k, the share of images with one of their own class among the k nearest others.

    An image that has no other of its class is there to be found, wrongly, but is no query.
    """
    hits = []
    findable = (classes.bincount()[classes] > 1).nonzero()[:, 0]
    for queries in findable.split(1024):  # all at once would be too large
        cosines = embeddings[queries] @ embeddings.T
        cosines.scatter_(1, queries[:, None], -torch.inf)  # an image does not find itself
        nearest = cosines.topk(max(ks)).indices
        hits.append(classes[nearest] == classes[queries, None])
    found = torch.cat(hits)
    return [found[:, :k].any(dim=1).float().mean().item() for k in ks]


def make_writable(file: Path) -> None:
    """Make the folder of a file, and raise OSError now, and not after the training, if the file cannot be written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    existed = file.exists()
    file.open("ab").close()
    if not existed:
        file.unlink()


def positive(text: str) -> int:
    """Return a whole number from 1."""
    if (number := int(text)) < 1:
        raise ValueError  # argparse says which argument it is
    return number


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a ResNet for image retrieval, and measure recall@k.")
    parser.add_argument("data", type=Path, help="folder with train/<class>/<image> and val/<class>/<image> in it")
    parser.add_argument("--model", default="resnet50", help="ResNet in torchvision.models (default: %(default)s)")
    parser.add_argument("--pretrained", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, default=Path("retrieval.pt"), help="file (default: %(default)s)")
    parser.add_argument("--dim", type=positive, default=512, help="of the embedding (default: %(default)s)")
    parser.add_argument("--k", type=positive, nargs="+", default=[1, 2, 4, 8], help="of recall@k (default: 1 2 4 8)")
    parser.add_argument("--epochs", type=positive, default=20)
    parser.add_argument("--batch-size", type=positive, default=64)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--size", type=positive, default=224, help="height and width of images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments())
