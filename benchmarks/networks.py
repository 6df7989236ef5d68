"""The shapes of the parameters of networks, as optimizers see them."""

Shape = tuple[int, ...]


def squeezenet_shapes(classes: int = 1000) -> list[Shape]:
    """Return the shapes of the parameters of SqueezeNet 1.1 (Iandola et al., 2016), in order."""
    shapes: list[Shape] = []

    def conv(inputs: int, outputs: int, kernel: int) -> None:
        shapes.extend([(outputs, inputs, kernel, kernel), (outputs,)])

    conv(3, 64, 3)
    channels = 64
    for squeeze, expand in ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256)):
        conv(channels, squeeze, 1)
        conv(squeeze, expand, 1)
        conv(squeeze, expand, 3)
        channels = 2 * expand
    conv(channels, classes, 1)
    return shapes


def resnet_shapes(blocks: tuple[int, ...], bottleneck: bool, classes: int = 1000) -> list[Shape]:
    """Return the shapes of a ResNet's parameters (He et al., 2016), in order, for its `blocks` per stage."""
    shapes: list[Shape] = []

    def conv_bn(inputs: int, outputs: int, kernel: int) -> None:
        shapes.extend([(outputs, inputs, kernel, kernel), (outputs,), (outputs,)])

    conv_bn(3, 64, 7)
    channels = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        outputs = 4 * width if bottleneck else width
        for _ in range(count):
            if bottleneck:
                conv_bn(channels, width, 1)
                conv_bn(width, width, 3)
                conv_bn(width, outputs, 1)
            else:
                conv_bn(channels, width, 3)
                conv_bn(width, outputs, 3)
            if channels != outputs:
                conv_bn(channels, outputs, 1)  # the shortcut
            channels = outputs
    return [*shapes, (classes, channels), (classes,)]


def vit_shapes(width: int, depth: int, patch: int = 16, size: int = 224, classes: int = 1000) -> list[Shape]:
    """Return the shapes of a vision transformer's parameters (Dosovitskiy et al., 2021), in order."""

    def linear(inputs: int, outputs: int) -> list[Shape]:
        return [(outputs, inputs), (outputs,)]

    norm: list[Shape] = [(width,), (width,)]
    attention = [*linear(width, 3 * width), *linear(width, width)]
    mlp = [*linear(width, 4 * width), *linear(4 * width, width)]
    tokens: list[Shape] = [(1, 1, width), (1, 1 + (size // patch) ** 2, width)]  # the class's, and all positions
    patches: list[Shape] = [(width, 3, patch, patch), (width,)]
    return [*tokens, *patches, *depth * (norm + attention + norm + mlp), *norm, *linear(width, classes)]


NETWORKS = {
    "squeezenet": squeezenet_shapes(),  # 1.2 million parameters in 52 tensors
    "resnet18": resnet_shapes((2, 2, 2, 2), bottleneck=False),  # 12 in 62
    "resnet50": resnet_shapes((3, 4, 6, 3), bottleneck=True),  # 26 in 161
    "vit_b16": vit_shapes(width=768, depth=12),  # 87 in 152
    "vit_l16": vit_shapes(width=1024, depth=24),  # 304 in 296
    "1000x1000": 1000 * [(1000,)],  # 1 in 1000: little to compute, much to find
}
