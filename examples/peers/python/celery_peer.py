"""The work through Celery, with Redis as its broker: python peer.py SECONDS SINGLES PORT.

The worker is Celery's own program with one process a core. Tasks are acknowledged when they have
ended, so that none is lost with a worker, and many are fetched ahead, as short tasks want it. Results
are kept for the latency only, where the end of a chain is waited for.
"""

import json
import os
import subprocess
import sys
import time

import redis
from celery import Celery, chain

PORT = os.environ.get("PEER_PORT") or sys.argv[3]
URL = f"redis://127.0.0.1:{PORT}/0"

app = Celery("peer", broker=URL, backend=URL)
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=128,
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=True,
)


@app.task(name="noop")
def noop(at):
    return at


@app.task(name="noop_kept", ignore_result=False)
def noop_kept(at):
    return at


def throughput(broker, phases, jobs):
    began = time.monotonic()
    with app.producer_pool.acquire(block=True) as producer:
        for at in range(jobs):
            rest = [noop.s() for _ in range(phases - 1)]
            task = chain(noop.s(at), *rest) if rest else noop.s(at)
            task.apply_async(producer=producer)
    # Nothing waits and nothing is unacknowledged, twice: a task between both is seen in one of them.
    empty = 0
    while empty < 2:
        waiting = broker.llen("celery") + broker.hlen("unacked")
        empty = empty + 1 if waiting == 0 else 0
        time.sleep(0.005)
    return jobs / (time.monotonic() - began)


def calibrated(broker, phases, seconds):
    throughput(broker, phases, 100)
    jobs = 500
    while True:
        rate = throughput(broker, phases, jobs)
        # What is over too soon says little: its start counts for too much.
        if jobs > rate * seconds / 2:
            return rate
        jobs = max(2 * jobs, int(rate * seconds))


def latency(singles):
    times = []
    for at in range(singles + singles // 10):
        began = time.monotonic()
        chain(noop.s(at), noop.s(), noop_kept.s()).apply_async().get(timeout=60)
        if at >= singles // 10:
            times.append((time.monotonic() - began) * 1000)
    times.sort()
    return times[(len(times) - 1) // 2], times[max(0, -(-len(times) * 99 // 100) - 1)]


def main():
    seconds, singles = float(sys.argv[1]), int(sys.argv[2])
    # Started from this file's folder, where it is the module `peer`.
    command = [sys.executable, "-m", "celery", "-A", "peer", "worker", "--loglevel", "error"]
    command += ["--concurrency", str(os.cpu_count()), "--without-gossip", "--without-mingle"]
    command += ["--without-heartbeat"]
    environment = dict(os.environ, PEER_PORT=PORT, C_FORCE_ROOT="1")
    worker = subprocess.Popen(command, env=environment, stdout=sys.stderr)
    try:
        broker = redis.Redis(port=int(PORT))
        noop_kept.delay(0).get(timeout=60)
        w1 = calibrated(broker, 1, seconds)
        w3 = calibrated(broker, 3, seconds)
        p50, p99 = latency(singles)
    finally:
        worker.kill()
    figures = {"w1_jobs_per_s": w1, "w3_jobs_per_s": w3}
    print(json.dumps({**figures, "single_w3_p50_ms": p50, "single_w3_p99_ms": p99}))


if __name__ == "__main__":
    main()
