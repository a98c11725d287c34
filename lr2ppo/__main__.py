"""`python -m lr2ppo COMMAND ...`, the same as `lr2ppo COMMAND ...`."""

from lr2ppo.cli import main

if __name__ == "__main__":
    main()
