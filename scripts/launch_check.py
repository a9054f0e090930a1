"""What a launcher checks before it starts the processes, so that the user reads one message and not eight.

Usage: python scripts/launch_check.py --port 12345 --gpus 8

Exits with 1 and a message when this machine shows fewer GPUs than asked for, or the port is taken.
"""

import argparse
import errno
import socket
import sys


def main(argv: list[str] | None = None) -> int:
    """Run the checks that the options ask for; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--port", type=int, help="port that this machine will listen on")
    parser.add_argument("--gpus", type=int, default=0, help="number of GPUs that the processes need")
    args = parser.parse_args(argv)
    problems = [check_gpus(args.gpus), check_port(args.port) if args.port is not None else None]
    for problem in filter(None, problems):
        print(f"error: {problem}", file=sys.stderr)
    return int(any(problems))


def check_gpus(wanted: int) -> str | None:
    """The problem, if fewer than `wanted` GPUs are visible."""
    if wanted == 0:
        return None
    import torch  # here, as it takes seconds and a run without GPUs needs none of it

    visible = torch.cuda.device_count()
    if visible >= wanted:
        return None
    way_out = f"use GPUS={visible}" if visible else "use GPUS=0 to run on the CPU"
    return (
        f"GPUS={wanted}, but PyTorch {torch.__version__} sees {visible} on {socket.gethostname()}: {way_out}"
    )


def check_port(port: int) -> str | None:
    """The problem, if nothing can listen on `port`."""
    try:
        _listen(port).close()
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "is in use, perhaps by another run" if taken else f"cannot be used ({error.strerror})"
        with _listen(0) as server:
            free = server.getsockname()[1]
        return f"port {port} on {socket.gethostname()} {reason}: give another, for example {free}"
    return None


def _listen(port: int) -> socket.socket:
    # On all addresses of both families where there are two, as PyTorch's store does.
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


if __name__ == "__main__":
    sys.exit(main())
