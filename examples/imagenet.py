"""Train a torchvision model on ImageNet, or on any folder with train/<class>/<image> and val/<class>/<image> in it.

    python examples/imagenet.py imagenet                                                  # one GPU, or the CPU
    torchrun --nproc-per-node 8 examples/imagenet.py imagenet --batch-size 1024 --lr 0.5  # eight GPUs

Needs fastfeed and torchvision. The recipe is that of torchvision's IMAGENET1K_V2, shortened. After every epoch the
output folder, which several machines must share, gets model.pt, the averaged weights, and checkpoint.pt, from which the
same command goes on where it was stopped: in the middle of an epoch, and on any number of GPUs that divides the batch.
"""

import argparse
import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torchvision
from torch.optim.swa_utils import update_bn

import fastfeed

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun


def main(args: argparse.Namespace) -> None:
    checkpoint = args.output / "checkpoint.pt"
    try:
        if min(args.epochs, args.batch_size, args.size, args.save_every, args.log_every) < 1:
            raise ValueError("--epochs, --batch-size, --size, --save-every and --log-every are 1 or more")
        if not (0 < args.lr < torch.inf and 0 <= args.ema_decay <= 1 and 0 <= args.seed < 2**63):
            raise ValueError("--lr is more than 0, --ema-decay is from 0 to 1, --seed is from 0 to 2**63 - 1")
        torch.manual_seed(args.seed)
        train, val = fastfeed.FolderSource(args.data / "train"), fastfeed.FolderSource(args.data / "val")
        model = torchvision.models.get_model(args.model, num_classes=len(train.classes))
        if different := {*train.classes} ^ {*val.classes}:
            raise ValueError(f"{', '.join(sorted(different))}: in only one of {train.root} and {val.root}")
        if args.batch_size % WORLD_SIZE or args.batch_size > len(train):
            raise ValueError(f"--batch-size: expected a multiple of {WORLD_SIZE} ranks, at most {len(train)} images")
        model.eval()(torch.zeros(1, 3, args.size, args.size))  # raises now, if it takes no such images
        keys = sorted(vars(args).keys() - {"data", "output", "save_every", "log_every"})  # these may change
        settings = {key: vars(args)[key] for key in keys} | {"classes": len(train.classes), "images": len(train)}
        saved = torch.load(checkpoint, map_location="cpu") if checkpoint.exists() else {"settings": settings}
        for key, value in settings.items():
            if (other := saved["settings"].get(key)) != value:
                raise ValueError(f"{checkpoint} is of {key} {other}, this is {key} {value}: choose another --output")
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "checkpoint.tmp").touch()  # raises now, and not at the first save
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"imagenet.py: {error}")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        torch.backends.cudnn.benchmark = True
    if WORLD_SIZE > 1:
        dist.init_process_group()

    common = {"batch_size": args.batch_size // WORLD_SIZE, "dtype": torch.bfloat16, "seed": args.seed}
    crops, mix = fastfeed.transforms.train(args.size, augment="trivial", erase=0.1), fastfeed.Mix(mixup=0.2, cutmix=1.0)
    training = {"shuffle": True, "drop_last": True, "transform": crops, **common}
    loader = fastfeed.DataLoader(train, mix=mix, **training)
    val_loader = fastfeed.DataLoader(val, transform=fastfeed.transforms.eval(args.size), info=True, **common)
    bn_loader = fastfeed.DataLoader(train, rank=0, world_size=1, **training)  # on every rank the same images
    model = model.to(device := loader.device, memory_format=torch.channels_last)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]  # biases, and the scales of norms: not to be decayed
    groups = [{"params": matrices, "weight_decay": 2e-5}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = fastfeed.optim.SGD(groups, lr=args.lr, momentum=0.9, nesterov=True, ema_decay=args.ema_decay)
    total = args.epochs * len(loader)
    schedule = fastfeed.optim.warmup_cosine(optimizer, warmup_steps=total // 20, total_steps=total)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "loader": loader}
    for name in parts.keys() & saved.keys():
        parts[name].load_state_dict(saved.pop(name))
    if RANK == 0:
        print(f"{args.model} on {WORLD_SIZE} x {device.type}, {schedule.last_epoch} of {total} steps done", flush=True)
    replica = torch.nn.parallel.DistributedDataParallel(model) if WORLD_SIZE > 1 else model
    for epoch in range(loader.epoch, args.epochs):
        model.train()
        losses, start = [], time.perf_counter()
        for images, target in loader:
            torch.manual_seed((step := schedule.last_epoch) * WORLD_SIZE + RANK)  # dropout is the same after a resume
            with torch.autocast(device.type, torch.bfloat16):
                loss = fastfeed.functional.cross_entropy(replica(images), target, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            if len(losses) == args.log_every and RANK == 0:
                mean = torch.stack(losses).mean().item()  # the host waits for the GPU here alone
                rate, lr = len(losses) * args.batch_size / (time.perf_counter() - start), schedule.get_last_lr()[0]
                print(f"step {step}: loss {mean:.4f} (rank 0), {rate:,.0f} img/s, lr {lr:.6f}", flush=True)
                losses, start = [], time.perf_counter()
            schedule.step()
            if schedule.last_epoch % args.save_every == 0:
                save(checkpoint, settings, parts)
        with optimizer.ema_weights(), torch.autocast(device.type, torch.bfloat16):
            torch.manual_seed(epoch)
            bn_loader.set_epoch(epoch)
            update_bn(islice(bn_loader, 50), model)  # which training does not read, and so goes on as without it
            accuracy = evaluate(model, val_loader)
            if RANK == 0:
                print(f"epoch {epoch}: accuracy {accuracy:.2%} of {len(val)} images, averaged weights", flush=True)
            save(args.output / "model.pt", settings, {"model": model})
        save(checkpoint, settings, parts)
    if WORLD_SIZE > 1:
        dist.destroy_process_group()


@torch.inference_mode()
def evaluate(model: torch.nn.Module, loader: fastfeed.DataLoader) -> float:
    """Return the share of all ranks' images whose class the model says."""
    model.eval()
    counts = torch.zeros(2, dtype=torch.int64, device=loader.device)
    for images, target, info in loader:
        right = (model(images).argmax(dim=1) == target) & info.valid  # what fills up a last batch is counted elsewhere
        counts += torch.stack([right.sum(), info.valid.sum()])
    if WORLD_SIZE > 1:
        dist.all_reduce(counts)
    return float(counts[0] / counts[1])


def save(path: Path, settings: dict[str, Any], parts: dict[str, Any]) -> None:
    """Write a file, on rank 0, that is whole, the old one or the new, whenever the process is killed."""
    if RANK == 0:
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save({"settings": settings, **states}, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a torchvision model on ImageNet, or a folder like it.")
    parser.add_argument("data", type=Path, help="folder with train/<class>/<image> and val/<class>/<image> in it")
    parser.add_argument("--model", default="resnet50", help="name in torchvision.models (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--batch-size", type=int, default=256, help="of all ranks together (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=0.125, help="scale it with the batch size (default: %(default)s)")
    parser.add_argument("--ema-decay", type=float, default=0.999, help="over 1 / (1 - it) steps (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="height and width of images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=1000, metavar="STEPS")
    parser.add_argument("--log-every", type=int, default=50, metavar="STEPS")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_arguments())
