"""torchrun with one process a GPU by default, whose failures end as the stage ended: its message and exit code."""

import logging
import os
import runpy
import sys

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, run

from lr2ppo.errors import UserError, reports_user_errors


def count_processes() -> int:
    """How many processes this machine runs: `NPROC`, else one a GPU, else one."""
    wanted = os.environ.get("NPROC")
    if wanted is None:
        return torch.cuda.device_count() or 1
    if not wanted.isdigit() or int(wanted) == 0:
        raise UserError(f"NPROC: found {wanted!r}, wanted a whole number of processes, such as NPROC=2")
    return int(wanted)


@reports_user_errors
def main() -> None:
    """Takes torchrun's own arguments; exits with 2 where the stage refused its input, else as the failed process."""
    processes = count_processes()
    if processes == 1 and sys.argv[1:2] == ["-m"]:
        # A single process needs no launcher above it.
        sys.argv[:] = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        return
    # Processes share the machine's cores; torchrun would give each one thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    arguments = get_args_parser().parse_args(["--standalone", f"--nproc-per-node={processes}", *sys.argv[1:]])
    try:
        run(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode != 2:
            how = (
                f"was ended by signal {-failure.exitcode}"
                if failure.exitcode < 0
                else f"ended with exit code {failure.exitcode}"
            )
            print(f"\nerror: process {rank} of {processes} {how}; the others were stopped", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)


if __name__ == "__main__":
    main()
