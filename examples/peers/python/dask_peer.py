"""The work through Dask distributed: python peer.py SECONDS SINGLES.

One worker process a core, each with one thread, as for work that holds the interpreter's lock. Jobs
are futures; three phases are three futures, each of which depends on the one before.
"""

import json
import os
import sys
import time

from distributed import Client, LocalCluster, wait


def noop(at):
    return at


def throughput(client, phases, jobs):
    began = time.monotonic()
    futures = range(jobs)
    for _ in range(phases):
        # Without `pure` a call that was made before would not be made again.
        futures = client.map(noop, futures, pure=False)
    wait(futures)
    rate = jobs / (time.monotonic() - began)
    failed = sum(future.status != "finished" for future in futures)
    if failed:
        raise RuntimeError(f"{failed} jobs failed")
    return rate


def calibrated(client, phases, seconds):
    throughput(client, phases, 100)
    jobs = 500
    while True:
        rate = throughput(client, phases, jobs)
        # What is over too soon says little: its start counts for too much.
        if jobs > rate * seconds / 2:
            return rate
        jobs = max(2 * jobs, int(rate * seconds))


def latency(client, singles):
    times = []
    for at in range(singles + singles // 10):
        began = time.monotonic()
        future = at
        for _ in range(3):
            future = client.submit(noop, future, pure=False)
        future.result()
        if at >= singles // 10:
            times.append((time.monotonic() - began) * 1000)
    times.sort()
    return times[(len(times) - 1) // 2], times[max(0, -(-len(times) * 99 // 100) - 1)]


def main():
    seconds, singles = float(sys.argv[1]), int(sys.argv[2])
    options = {"n_workers": os.cpu_count(), "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(processes=True, host="127.0.0.1", **options) as cluster, Client(cluster) as client:
        w1 = calibrated(client, 1, seconds)
        w3 = calibrated(client, 3, seconds)
        p50, p99 = latency(client, singles)
    figures = {"w1_jobs_per_s": w1, "w3_jobs_per_s": w3}
    print(json.dumps({**figures, "single_w3_p50_ms": p50, "single_w3_p99_ms": p99}))


if __name__ == "__main__":
    main()
