"""Checks before a launcher starts the processes, so that there is one error message, not one per process.

Usage: python scripts/launch_check.py --port 12345 --gpus 8

Exits with 1 and a message if this machine has fewer GPUs than requested, or the port is in use.
"""

import argparse
import errno
import socket
import sys


def main(argv: list[str] | None = None) -> int:
    """Run the selected checks; returns the exit status."""
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
    """Error message if fewer than `wanted` GPUs are visible, else None."""
    if wanted == 0:
        return None
    import torch  # here, because it takes seconds and runs without GPUs do not need it

    visible = torch.cuda.device_count()
    if visible >= wanted:
        return None
    way_out = f"use GPUS={visible}" if visible else "use GPUS=0 to run on the CPU"
    return (
        f"GPUS={wanted}, but PyTorch {torch.__version__} sees {visible} on {socket.gethostname()}: {way_out}"
    )


def check_port(port: int) -> str | None:
    """Error message if it is not possible to listen on `port`, else None."""
    try:
        _listen(port).close()
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = "is in use, perhaps by another run" if taken else f"cannot be used ({error.strerror})"
        with _listen(0) as server:
            free = server.getsockname()[1]
        return f"port {port} on {socket.gethostname()} {reason}: choose another, for example {free}"
    return None


def _listen(port: int) -> socket.socket:
    # On all IPv4 and IPv6 addresses, like PyTorch's store.
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


if __name__ == "__main__":
    sys.exit(main())
