"""Fine-tune a pretrained torchvision model on images of your own, on one GPU or the CPU.

    python examples/finetune.py pets

Needs fastfeed and torchvision. The folder has train/<class>/<image> and val/<class>/<image> in it, or <class>/<image>,
of which every fifth of a class is then kept for validation. The pretrained weights are downloaded on the first run.

At first the new head is trained alone, and then the whole model, the backbone with a tenth of the head's learning rate.
--find-lr looks for that learning rate, by a range test. The weights of the best epoch go to a file, with the names of
the classes.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

import fastfeed
from fastfeed import FolderSource, transforms

loss_function = partial(fastfeed.functional.cross_entropy, label_smoothing=0.1)


def main(args: argparse.Namespace) -> None:
    try:
        if not (0 < args.lr < torch.inf and 0 <= args.weight_decay < torch.inf and 0 <= args.seed < 2**63):
            raise ValueError("--lr is more than 0, --weight-decay is 0 or more, --seed is from 0 to 2**63 - 1")
        torch.manual_seed(args.seed)
        train, val = split(args.data)
        make_writable(args.output)
        model, head, size = make_model(args.model, len(train.classes), pretrained=args.pretrained)
        check_size(model, size := args.size or size)
    except (OSError, ValueError) as error:
        sys.exit(f"finetune.py: {error}")
    batch_size = min(args.batch_size, len(train))
    crops = transforms.train(size, scale=(0.35, 1.0))
    loader = fastfeed.DataLoader(
        train, batch_size, shuffle=True, drop_last=True, transform=crops, dtype=torch.bfloat16, seed=args.seed
    )
    val_loader = fastfeed.DataLoader(val, batch_size, transform=transforms.eval(size), dtype=torch.bfloat16)
    model = model.to(loader.device, memory_format=torch.channels_last)
    print(f"{args.model} on {loader.device}: {len(train)} training and {len(val)} validation images", flush=True)

    in_head = set(head.parameters())
    backbone = [p for p in model.parameters() if p not in in_head]
    groups = [{"params": backbone, "lr": args.lr / 10}, {"params": list(in_head), "lr": args.lr}]
    optimizer = fastfeed.optim.AdamW(groups, weight_decay=args.weight_decay, max_grad_norm=1.0)
    if args.find_lr:
        found = fastfeed.optim.lr_find(model, optimizer, loader, loss_function, autocast=torch.bfloat16)
        if found.suggestion is None:
            sys.exit(f"finetune.py: --find-lr found no learning rate: {found.reason}")
        print(f"Learning rate: {found.suggestion:.2g}", flush=True)
        for group in optimizer.param_groups:
            group["lr"] *= found.suggestion / args.lr
    total = args.epochs * len(loader)
    schedule = fastfeed.optim.warmup_cosine(optimizer, warmup_steps=total // 10, total_steps=total)

    best = -1.0
    for epoch in range(args.epochs):
        frozen = epoch < args.frozen_epochs
        for parameter in backbone:
            parameter.requires_grad_(not frozen)
        model.train(not frozen)  # a frozen backbone keeps the statistics of its batch normalization too
        head.train()
        losses = []
        for images, target in loader:
            with torch.autocast(loader.device.type, torch.bfloat16):
                loss = loss_function(model(images), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        mean, accuracy = float(torch.stack(losses).mean()), evaluate(model, val_loader)
        print(f"epoch {epoch}: loss {mean:.4f}, accuracy {accuracy:.2%}{' (head alone)' * frozen}", flush=True)
        if accuracy > best:
            best = accuracy
            weights = {"model": args.model, "classes": train.classes, "size": size, "weights": model.state_dict()}
            torch.save(weights, args.output)
    print(f"best accuracy {best:.2%}, weights in {args.output}")


def split(root: Path) -> tuple[FolderSource, FolderSource]:
    """Return training and validation images."""
    there = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    missing = [name for name in ("train", "val") if name not in there]
    if there and missing and any(path.is_dir() for path in (root / there[0]).iterdir()):
        lacks = "/ and no ".join(missing)
        raise ValueError(f"{root} has {there[0]}/ but no {lacks}/: expected train/ and val/, or <class>/<image> alone")
    if there:
        train, val = FolderSource(root / "train"), FolderSource(root / "val")
        if different := {*train.classes} ^ {*val.classes}:
            raise ValueError(f"{', '.join(sorted(different))}: in only one of {train.root} and {val.root}")
        return train, val
    source = FolderSource(root)
    indices = np.arange(len(source))
    held_out = np.concatenate([indices[source.labels == label][4::5] for label in range(len(source.classes))])
    if not len(held_out):
        raise ValueError(f"{root} has no class of five images or more, of which every fifth would be for validation")
    return source.subset(np.delete(indices, held_out)), source.subset(held_out)


def make_model(name: str, num_classes: int, *, pretrained: bool) -> tuple[nn.Module, nn.Module, int]:
    """Return a model with a new head, the head, and the size of the images that its weights were trained for."""
    weights = torchvision.models.get_model_weights(name).DEFAULT if pretrained else None
    model = torchvision.models.get_model(name, weights=weights)
    if name in ("googlenet", "inception_v3"):  # whose further heads make a tuple of the output in training
        model.aux_logits, model.aux1, model.aux2, model.AuxLogits = False, None, None, None
    linear = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"{name} has no linear layer to be replaced; expected another model, as resnet50")
    path, last = linear[-1]
    head = nn.Linear(last.in_features, num_classes)
    model.set_submodule(path, head)
    return model, head, weights.transforms().crop_size[0] if weights else 224


@torch.inference_mode()
def check_size(model: nn.Module, size: int) -> None:
    """Raise ValueError if the model takes no images of that height and width."""
    try:
        model.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"--size is {size}, which the model does not take: {error}") from error


@torch.inference_mode()
def evaluate(model: nn.Module, loader: fastfeed.DataLoader) -> float:
    """Return the share of images whose class the model says."""
    model.eval()
    with torch.autocast(loader.device.type, torch.bfloat16):
        right = sum((model(images).argmax(dim=1) == target).sum() for images, target in loader)
    return float(right) / len(loader.dataset)


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
    parser = argparse.ArgumentParser(description="Fine-tune a pretrained torchvision model on a folder of images.")
    parser.add_argument("data", type=Path, help="folder with <class>/<image> in it, or with train/ and val/ of those")
    parser.add_argument("--model", default="resnet50", help="name in torchvision.models (default: %(default)s)")
    parser.add_argument("--pretrained", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, default=Path("finetuned.pt"), help="file (default: %(default)s)")
    parser.add_argument("--epochs", type=positive, default=10)
    parser.add_argument("--frozen-epochs", type=int, default=1, help="of the head alone (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="of the head (default: %(default)s)")
    parser.add_argument("--find-lr", action="store_true", help="look for a learning rate instead")
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--size", type=positive, help="height and width of images (default: that of the weights)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments())
