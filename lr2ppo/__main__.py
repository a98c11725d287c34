"""`python -m lr2ppo COMMAND ...`, the same as `lr2ppo COMMAND ...`."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until the command itself is at work, Ctrl-C is to leave no traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from lr2ppo.cli import main

if __name__ == "__main__":
    main()
