"""The depth of an encoder's parameters: what stands before its blocks, block by block, and what stands behind them."""

from torch import nn

# Where encoders keep their blocks, first to last: transformers, ConvNeXt and ConvNet, Swin.
BLOCKS = ("blocks", "stages", "layers")


def blocks_of(encoder: nn.Module) -> list[nn.Module]:
    """Blocks of an encoder from its input on: of a transformer, of a ResNet's stages, or the stages of another.

    Raises:
        ValueError: none are found.

    >>> from sslmodules.encoders import create_encoder
    >>> len(blocks_of(create_encoder("resnet18"))), len(blocks_of(create_encoder("vit_tiny_patch16_224")))
    (8, 12)
    """
    if isinstance(encoder, nn.Sequential):
        return list(encoder)
    for name in BLOCKS:
        if isinstance(blocks := getattr(encoder, name, None), (nn.Sequential, nn.ModuleList)):
            return list(blocks)
    resnets = [getattr(encoder, f"layer{i}", None) for i in range(1, 5)]
    if all(isinstance(stage, nn.Sequential) for stage in resnets):
        return [block for stage in resnets for block in stage]  # type: ignore[union-attr]
    raise ValueError(
        f"the blocks of a {type(encoder).__name__} are not known; pass an encoder that keeps them in an attribute "
        f"{', '.join(map(repr, BLOCKS))}, or an nn.Sequential"
    )


def layers(encoder: nn.Module) -> list[list[nn.Parameter]]:
    """Parameters by depth: those before the blocks (with tokens and positions), of each block, and those behind.

    >>> from sslmodules.encoders import create_encoder
    >>> [len(layer) for layer in layers(create_encoder("vit_tiny_patch16_224", depth=2))]  # the last is its norm
    [4, 12, 12, 2]
    """
    blocks = [list(block.parameters()) for block in blocks_of(encoder)]
    in_blocks = {id(p) for block in blocks for p in block}
    before: list[nn.Parameter] = []
    behind: list[nn.Parameter] = []
    passed = False
    for p in encoder.parameters():  # in the order in which they were registered
        passed |= id(p) in in_blocks
        if id(p) not in in_blocks:
            (behind if passed else before).append(p)
    return [before, *blocks, behind]
