#!/usr/bin/env python3
"""Seconds of a run of each ONNX file in ONNX Runtime, the files taking turns in this one process, as a JSON list.

The figure is the lower quartile of the runs, which other work on the machine moves less than the middle. Nothing but
ONNX Runtime is imported, so that a fresh process costs little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import onnxruntime as ort

WARM_UP = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    image = np.random.default_rng(0).standard_normal((1, 3, options.size, options.size), dtype=np.float32)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = 3
    sessions = [ort.InferenceSession(f, settings, providers=["CPUExecutionProvider"]) for f in options.files]
    times: list[list[float]] = [[] for _ in sessions]
    for turn in range(WARM_UP + options.runs):
        for session, spent in zip(sessions, times, strict=True):
            start = time.perf_counter()
            session.run(None, {session.get_inputs()[0].name: image})
            if turn >= WARM_UP:
                spent.append(time.perf_counter() - start)
    print(json.dumps([statistics.quantiles(spent, n=4)[0] for spent in times]))


if __name__ == "__main__":
    main()
