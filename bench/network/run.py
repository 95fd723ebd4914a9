"""Averages gradients over shaped links between network namespaces, and writes down seconds and bytes.

    python bench/network/run.py --json bench/results/NAME/network.json

Where a network namespace may be made (root, or user namespaces) and iproute2 is installed; exit status 77 says that
this machine has none, and why. Every measurement is a group of processes of its own with a timeout: what refuses or
hangs is written down as such. A piece is a rate, a delay and a number of workers ("2x2": two nodes of two); pieces
already in the JSON are replaced one by one, so that a run can be cut up.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import multiprocessing
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any

import links

DIED = "a process died"
#: Says that the links cannot be had here.
SKIPPED = 77
#: Those of a group of several processes a node: what travels inside a node differs from what leaves it.
LOCAL = ("float32", "fp16 hook", "requantize two_bit", "hierarchical two_bit", "hierarchical base3")
QUICK = ("float32", "gather two_bit", "sum two_bit", "requantize two_bit", "requantize base3")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", default="0.1,1,10", help="Gbit/s of each node's egress")
    parser.add_argument("--workers", default="2,4,2x2", help="2x2: two nodes of two processes")
    parser.add_argument("--delays", default="0,5", help="milliseconds, by netem, where the kernel has it")
    parser.add_argument("--cases", default="", help="only those whose name contains one of these, separated by commas")
    parser.add_argument("--what", default="exchange,step", help="an exchange alone, training steps")
    parser.add_argument("--compute", type=float, default=0.2, help="seconds of computing of a training step")
    parser.add_argument("--elements", type=int, default=0, help="one layer of so many elements in place of ResNet-50")
    parser.add_argument("--json", type=pathlib.Path, help="file to write or to add to")
    parser.add_argument("--quick", action="store_true", help="seconds: two workers, a small gradient, few cases")
    options = parser.parse_args()
    if options.quick:
        options.rates, options.workers, options.delays, options.what = "1", "2", "0", "exchange"
        options.elements = options.elements or 1 << 20
    return options


class Bench:
    """The measurements of one run of this program."""

    def __init__(self, options: argparse.Namespace) -> None:
        # Not before this process is root, which it can become only while it has no other threads.
        import cases
        import torch
        import worker

        from terngrad_kernels.bench.models import resnet50

        self.options, self.cases, self.worker = options, cases, worker
        torch.set_num_threads(1)
        shapes = [(options.elements // 1024, 1024)] if options.elements else resnet50()
        sizes = [torch.Size(shape).numel() for shape in shapes]
        self.elements = sum(sizes)
        #: A gradient a rank: the same numbers, moved by some.
        self.most, self.shift = 4, 64
        pool = torch.randn(self.elements + self.most * self.shift, generator=torch.Generator().manual_seed(0))
        self.gradients = [
            [part.view(shape) for part, shape in zip(pool[at : at + self.elements].split(sizes), shapes, strict=True)]
            for at in range(0, self.most * self.shift, self.shift)
        ]

    def group(self, case: Any, what: str, made: links.Links, local: int, timing: dict[str, float]) -> dict[str, Any]:
        """Measure one case in a group of processes, and return its row; whatever becomes of it, they are gone then."""
        context = multiprocessing.get_context("fork")
        world = len(made.nodes) * local
        limit = timing["limit"]
        processes: list[Any] = []
        pipes: list[Any] = []
        charged = made.charged(0)
        with tempfile.TemporaryDirectory() as folder:
            for rank in range(world):
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(
                    target=self._serve,
                    args=(sender, case, what, rank, made.nodes, local, f"{folder}/store", timing),
                    daemon=True,
                )
                process.start()
                sender.close()
                processes.append(process)
                pipes.append(receiver)
            try:
                answers, error = _collect(pipes, limit)
                if error == DIED:
                    error = f"{DIED}: {_last_words(pathlib.Path(folder, 'store.errors').read_text())}"
            finally:
                for process in processes:
                    process.kill()
                    process.join()
        row: dict[str, Any] = {"case": case.name, "by": case.peer, "what": what}
        if error:
            return row | {"failed": error}
        return row | self._summary(answers, local, timing) | {"charged_whole_run": made.charged(0) - charged}

    def _serve(self, sender: Any, case: Any, what: str, rank: int, *rest: Any) -> None:
        nodes, local, store, timing = rest
        # gloo and PyTorch's hooks say a lot where they fail.
        os.dup2(os.open(f"{store}.errors", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        try:
            sender.send(self.worker.serve(case, what, rank, nodes, local, store, self.gradients[rank], timing))
            sender.close()
        except BaseException as error:
            text = str(error).strip().splitlines() or [""]
            said = text[0].rpartition("error when running the callback: ")[2]
            sender.send({"error": f"{type(error).__name__}: {said[:200]}"})
        os._exit(0)

    def _summary(self, answers: Sequence[dict[str, Any]], local: int, timing: dict[str, float]) -> dict[str, Any]:
        def seconds(name: str) -> list[float]:
            """Of each round, from the first process's start to the last one's end: they share a clock."""
            rounds = zip(*(answer[name] for answer in answers), strict=True)
            return [max(end for _, end in each) - min(start for start, _ in each) for each in rounds]

        row: dict[str, Any] = {}
        if answers[0]["times"]:
            every = seconds("times")
            row = {"seconds": statistics.median(every), "rounds": len(every), "least": min(every), "most": max(every)}
            # Processes of a node have one interface, whose counters each of them reads.
            nodes = answers[::local]
            for name in ("sent", "packets_sent", "dropped"):
                row[name] = round(statistics.mean(answer[name] for answer in nodes))
        if "alone" in answers[0]:
            row["alone_seconds"] = statistics.median(seconds("alone"))
            row["compute_seconds"] = timing["compute"]
        for name in (
            "computed",
            "scratch_bytes",
            "kernel_seconds",
            "exposed_seconds",
            "buckets",
            "bandwidth",
            "latency",
        ):
            if name in answers[0]:
                row[name] = max(answer[name] for answer in answers) * (local if name == "computed" else 1)
        return row

    def piece(self, piece: dict[str, Any], write: Callable[[], None]) -> None:
        """Measure a piece, and write each row down: in place of the one of the same case that was there."""
        gbit, delay = piece["gbit"], piece["delay_ms"]
        nodes, _, inside = piece["workers"].partition("x")
        local = int(inside or 1)
        piece["date"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        try:
            made = links.Links(int(nodes), gbit, delay)
        except links.NotAllowed as error:
            if not delay:
                raise
            piece["failed"] = str(error)
            print(f"{gbit:>5} Gbit/s {piece['workers']:>3} with {delay} ms: {error}")
            return
        try:
            piece |= {"burst_bytes": made.burst, "queue_bytes": made.limit, "congestion_control": links.CONGESTION}
            nbytes = min(1 << 26, max(1 << 20, gbit * 1e9 / 8 * 0.2))
            timing = {"limit": 60.0, "timeout": 60.0, "bytes": nbytes}
            piece["link"] = self.group(self.cases.CASES["float32"], "link", made, local, timing)
            refused: dict[str, str] = {}
            for what in self.options.what.split(","):
                for case in self._chosen(what, local):
                    if case.name in refused:
                        row = {"case": case.name, "by": case.peer, "what": what, "failed": refused[case.name]}
                    else:
                        row = self._row(case, what, made, gbit, local)
                    if "failed" in row and not row["failed"].startswith(DIED):
                        refused[case.name] = row["failed"]
                    others = [old for old in piece["rows"] if (old["case"], old["what"]) != (case.name, what)]
                    piece["rows"] = [*others, row]
                    write()
                    said = f"{row['seconds']:9.4f} s {row['sent']:12,} bytes" if "seconds" in row else row["failed"]
                    print(f"{gbit:>5} Gbit/s {piece['workers']:>3} {what:8} {case.name:40} {said}", flush=True)
        finally:
            made.close()

    def _chosen(self, what: str, local: int) -> list[Any]:
        wanted = [part for part in self.options.cases.split(",") if part]
        found = []
        for name, case in self.cases.CASES.items():
            if (local == 1 and case.local) or (local > 1 and name not in LOCAL):
                continue
            if self.options.quick and not wanted and name not in QUICK:
                continue
            if "waiting" in name and what == "exchange":  # nothing is there to be overlapped with
                continue
            if not wanted or any(part in name for part in wanted):
                found.append(case)
        return found

    def _row(self, case: Any, what: str, made: links.Links, gbit: float, local: int) -> dict[str, Any]:
        ranks = len(made.nodes) * local
        paper = case.sent(self.elements, len(made.nodes), local) if case.sent else None
        # Of ours, as long as they last at most.
        expected = 8 * (self.elements * 4 / 8 if paper is None else paper) / (gbit * 1e9)
        expected += case.slow * self.elements / 25e6
        timeout = case.timeout or 60.0 + 4 * expected
        timing = {"compute": self.options.compute, "timeout": timeout, "limit": 4 * expected + 90.0}
        if case.timeout:
            timing["limit"] = 2 * case.timeout
        if what == "exchange":
            # What is slow shows nothing of a cold start.
            timing |= {"warm": 0 if expected > 3 else 2, "rounds": min(7, max(1, int(4 / max(expected, 1e-3))))}
        else:
            # DistributedDataParallel makes its buckets anew after the first step. PowerSGD averages twice plainly.
            warm = 2 if expected < 3 or case.timeout else 1
            timing |= {"warm": warm, "rounds": min(5, max(1, int(5 / (expected + self.options.compute))))}
        row = self.group(case, what, made, local, timing)
        row["workers_of_a_core"] = ranks / len(os.sched_getaffinity(0))
        if "seconds" in row and paper is not None:
            row["computed"] = round(paper)
        return row


def _collect(pipes: Sequence[Any], limit: float) -> tuple[list[dict[str, Any]], str]:
    """Return what the processes of a group found, and why they found nothing."""
    answers: dict[int, dict[str, Any]] = {}
    until = time.monotonic() + limit
    while len(answers) < len(pipes):
        left = [pipe for rank, pipe in enumerate(pipes) if rank not in answers]
        ready = wait(left, timeout=max(0.0, until - time.monotonic()))
        if not ready:
            return [], f"hung: no end within {limit:.0f} s"
        for pipe in ready:
            try:
                answer = pipe.recv()
            except EOFError:
                answer = {"error": DIED}
            if "error" in answer:
                return [], answer["error"]
            answers[pipes.index(pipe)] = answer
    return [answers[rank] for rank in range(len(pipes))], ""


def _call() -> float:
    """Seconds that a call of this package takes from Python, with the little around it in an exchange."""
    import torch

    import terngrad_kernels as tk

    x, rounds = torch.ones(1), 200
    layout = tk.Layout([(1,)])
    out = tk.encode(x, layout=layout).data
    start = time.perf_counter()
    for _ in range(rounds):
        tk.encode(x, layout=layout, out=out)
    return (time.perf_counter() - start) / rounds


def _last_words(text: str) -> str:
    """What a process that was ended by a C++ exception said."""
    return next((line.partition("what():")[2].strip()[:300] for line in text.splitlines() if "what():" in line), "")


def machine() -> dict[str, Any]:
    import torch

    import terngrad_kernels as tk

    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "processor": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?"),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "terngrad_kernels": tk.__version__,
        "instruction_set": str(tk.build_info()["instruction_set"]),
        "threads_a_worker": 1,
    }


def measured_kernels(shapes: Sequence[tuple[int, ...]], together: Any, queue: Any, rounds: int = 5) -> None:
    """Put the seconds an element of kernels on the buckets of a model, while other processes do the same.

    As in an exchange: in one thread each, on all cores at once, from memory.
    """
    import model
    import torch

    import terngrad_kernels as tk
    from terngrad_kernels.averaging import travels_as_float32

    torch.set_num_threads(1)
    tk.set_num_threads(1)
    layouts = [
        tk.Layout(
            [(math.prod(shape),) for shape in bucket],
            packing=["float32" if travels_as_float32(math.prod(shape), len(shape)) else "two_bit" for shape in bucket],
        )
        for bucket in model.buckets(shapes)
    ]
    xs = [torch.randn(layout.size) for layout in layouts]
    messages = [tk.encode(x, layout=layout).data for x, layout in zip(xs, layouts, strict=True)]
    nine = [torch.stack([message] * 9) for message in messages]
    buckets = range(len(xs))

    def seconds(call: Callable[[int], object]) -> float:
        taken = []
        for _ in range(rounds):
            together.wait()
            start = time.perf_counter()
            for i in buckets:
                call(i)
            taken.append(time.perf_counter() - start)
        return statistics.median(taken) / sum(map(len, xs))

    def summed(many: int) -> float:
        return seconds(lambda i: tk.decode_sum(tk.Packed(layouts[i], nine[i][:many]), out=xs[i]))

    one, more = summed(1), summed(9)
    encode = seconds(lambda i: tk.encode(xs[i], layout=layouts[i], out=messages[i]))
    cast = seconds(lambda i: xs[i].copy_(xs[i].half()))
    queue.put({"encode": encode, "decode": one, "add": max(0.0, more - one) / 8, "cast": cast, "call": _call()})


def write(path: pathlib.Path | None, found: dict[str, Any]) -> None:
    """Replace the file whole, so that one that is cut off leaves what was there."""
    if path is None:
        return
    found["pieces"].sort(key=lambda piece: (piece["delay_ms"], piece["workers"], piece["gbit"]))
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(found, indent=1) + "\n")
    scratch.replace(path)


def main() -> None:
    options = arguments()
    try:
        links.become_root()
        bench = Bench(options)
        found: dict[str, Any] = {"pieces": []}
        if options.json and options.json.exists():
            found = json.loads(options.json.read_text())
        context = multiprocessing.get_context("fork")
        cores = len(os.sched_getaffinity(0))
        queue, together = context.SimpleQueue(), context.Barrier(cores)
        given = ([tuple(each.shape) for each in bench.gradients[0]], together, queue)
        processes = [context.Process(target=measured_kernels, args=given) for _ in range(cores)]
        for process in processes:
            process.start()
        each = [queue.get() for _ in processes]
        for process in processes:
            process.join()
        rates = {name: statistics.mean(rates[name] for rates in each) for name in each[0]}
        found |= {"machine": machine(), "elements": bench.elements, "kernel_seconds": rates}
        for delay in map(float, options.delays.split(",")):
            for gbit in map(float, options.rates.split(",")):
                for workers in options.workers.split(","):
                    key = {"gbit": gbit, "delay_ms": delay, "workers": workers}
                    piece = next((old for old in found["pieces"] if key.items() <= old.items()), None)
                    if piece is None:
                        piece = {**key, "rows": []}
                        found["pieces"].append(piece)
                    bench.piece(piece, lambda: write(options.json, found))
        write(options.json, found)
    except links.NotAllowed as error:
        print(f"no links between network namespaces here: {error}", file=sys.stderr)
        sys.exit(SKIPPED)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
