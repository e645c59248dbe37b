"""timm's own Swin, Swin V2, ViT, Twins and ConvNeXt on visible tokens."""
