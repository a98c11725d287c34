"""The three training stages and their evaluation, each a command: `python -m lr2ppo.stages.<stage>`."""
