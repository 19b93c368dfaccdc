"""A Ray cluster on this machine, of a head without processors and nodes of one each.

    python ray_cluster.py NODES [taken]     prints its address; each line of input removes a node as
                                            if it had lost power, and adds another one

taken: something else holds all processors.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "1"  # several nodes on one machine

import ray
from ray.cluster_utils import Cluster


def main() -> None:
    number, *taken = sys.argv[1:]
    cluster = Cluster(
        initialize_head=True,
        connect=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False},
    )
    nodes: list[Any] = [cluster.add_node(num_cpus=1) for _ in range(int(number))]
    if taken:
        hold = ray.remote(num_cpus=1)(lambda: time.sleep(1e6))
        held = [hold.remote() for _ in nodes]
        while ray.available_resources().get("CPU", 0):
            time.sleep(0.2)
        assert held
    print("address", cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(nodes.pop(0), allow_graceful=False)
        nodes.append(cluster.add_node(num_cpus=1))
        print("replaced", flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
