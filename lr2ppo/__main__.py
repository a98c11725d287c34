"""`python -m lr2ppo COMMAND ...`, the same as `lr2ppo COMMAND ...`."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C should print no traceback before the command starts.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from lr2ppo.cli import main

if __name__ == "__main__":
    main()
