"""Small real image files for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Draw a smooth colour picture: few frequencies, so that decoders differ by rounding only."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    channels = []
    for _ in range(3):
        fx, fy, phase = rng.uniform(0.5, 3), rng.uniform(0.5, 3), rng.uniform(0, 6)
        channels.append(127 + 100 * np.sin(2 * np.pi * (fx * x + fy * y) + phase))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def write_folder(root: Path, counts: dict[str, int], sizes=((48, 64), (80, 60), (33, 47)), **save) -> Path:
    """Write root/<class>/<number>.jpg, `counts[class]` of them, with `sizes` (height, width) in turn."""
    number = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            picture(*sizes[number % len(sizes)], seed=number).save(root / name / f"{i:03}.jpg", quality=90, **save)
            number += 1
    return root
