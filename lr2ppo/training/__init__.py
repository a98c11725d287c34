"""What the stages share: processes and devices, optimizers, weights on disk, run folders and their logs."""
