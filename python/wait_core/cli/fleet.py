"""Options for a fleet: how many replicas, whether prefill and decode are apart, how KV goes from one to the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wait_core._core import WaitCoreError
from wait_core.cli import arguments as kinds
from wait_core.hardware import A100
from wait_core.simulation import Disaggregated, Transfer
from wait_core.simulation.fleet import MOST_REPLICAS, MOST_ROUTERS, MOST_THREADS, ROUTER
from wait_core.simulation.run import STALENESS_S
from wait_core.simulation.transfer import BANDWIDTH

if TYPE_CHECKING:
    import argparse

    from wait_core.hardware import Deployment


def add_fleet(group: argparse._ArgumentGroup) -> None:
    """Add the options of a fleet but the router."""
    some = kinds.whole(1, MOST_REPLICAS)
    group.add_argument("--replicas", metavar="N", type=some, help="so many of these engines")
    group.add_argument(
        "--prefill-replicas",
        metavar="P",
        type=kinds.whole(0, MOST_REPLICAS),
        help="disaggregated prefill: so many of these engines compute prompts, for the decode replicas to go on from;"
        " 0, as without it: prompts are computed elsewhere",
    )
    group.add_argument("--decode-replicas", metavar="D", type=some, help="and so many decode")
    add_common(group)


def add_common(group: argparse._ArgumentGroup) -> None:
    """Add the options that simulated and planned fleets have in common: routers, threads, transfer of KV."""
    group.add_argument(
        "--staleness",
        metavar="S",
        type=kinds.seconds,
        default=STALENESS_S,
        help="how old what the router knows of a replica is at most, s (%(default)s)",
    )
    group.add_argument(
        "--num-routers",
        metavar="R",
        type=kinds.whole(1, MOST_ROUTERS),
        default=1,
        help="routers side by side, each of which knows of the others only what replicas report (%(default)s)",
    )
    group.add_argument(
        "--session-affinity",
        action="store_true",
        help="all turns of a conversation come to one of them; otherwise each request comes to the next",
    )
    group.add_argument(
        "--threads",
        metavar="N",
        type=kinds.whole(1, MOST_THREADS),
        help="threads that advance engines (default: one a core); they change no result",
    )
    group.add_argument(
        "--kv-bandwidth",
        metavar="GB/S",
        type=kinds.bandwidth,
        help="of the link of each GPU, which carries the KV of one request at a time, 1e9 bytes/s"
        f" ({BANDWIDTH / 1e9:g}; inf)",
    )
    group.add_argument(
        "--kv-latency", metavar="S", type=kinds.seconds, default=0.0, help="time that a transfer takes besides, s"
    )
    group.add_argument(
        "--kv-bytes-per-token",
        metavar="BYTES",
        type=kinds.non_negative,
        help="of all layers, on each GPU (default: the model's)",
    )


def transfer_of(arguments: argparse.Namespace, deployment: Deployment | None) -> Transfer:
    """Return the transfer that the options ask for, of the KV of the model."""
    size = arguments.kv_bytes_per_token
    if size is None and deployment is not None:
        size = deployment.kv_bytes_per_token
    try:
        return Transfer.of(
            arguments.iteration_time or A100,
            bandwidth=BANDWIDTH if arguments.kv_bandwidth is None else 1e9 * arguments.kv_bandwidth,
            latency_s=arguments.kv_latency,
            bytes_per_token=size,
        )
    except WaitCoreError as error:
        raise WaitCoreError(str(error).replace("bytes_per_token is", "--kv-bytes-per-token is")) from None


def fleet_of(arguments: argparse.Namespace, router: str | None, deployment: Deployment | None) -> dict[str, Any]:
    """Return the fleet that the options ask for, as keyword arguments of `simulate`."""
    prefill, decode = arguments.prefill_replicas, arguments.decode_replicas
    if arguments.replicas is not None and (prefill, decode) != (None, None):
        raise WaitCoreError("--replicas: with --prefill-replicas and --decode-replicas, the replicas are those")
    if decode is None and prefill is not None:
        raise WaitCoreError("--decode-replicas is missing: what prefill replicas compute is decoded by others")
    if decode is None and arguments.replicas is None:
        if router is not None:
            raise WaitCoreError("--replicas is missing: a router chooses among several engines")
        return {}
    replicas = arguments.replicas
    if decode is not None:
        replicas = Disaggregated(prefill=prefill or 0, decode=decode, transfer=transfer_of(arguments, deployment))
    return {
        "replicas": replicas,
        "router": router or ROUTER,
        "routers": arguments.num_routers,
        "session_affinity": arguments.session_affinity,
        "staleness_s": arguments.staleness,
        "threads": arguments.threads,
    }
