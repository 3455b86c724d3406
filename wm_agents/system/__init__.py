"""The machine and the disk, independent of models and training."""
