"""Trainers: mid-training, SFT, rollout DPO, GRPO, and evaluation; the `train` command."""
