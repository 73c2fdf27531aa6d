"""paretune: choose which parameters of a pretrained model to fine-tune."""
