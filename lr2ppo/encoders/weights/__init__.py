"""Read encoder weights in any supported layout into RoBERTa and ViT models."""
