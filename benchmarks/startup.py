"""Seconds from typing `--help` to the last character, for both commands.

python benchmarks/startup.py [RUNS]
"""

import statistics
import subprocess
import sys
import time


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    bare = [seconds([sys.executable, "-c", "pass"]) for _ in range(runs)]
    print(f"{'python':16} min {min(bare):.3f} s  median {statistics.median(bare):.3f} s")
    for room in ("curate", "train"):
        taken = [seconds([sys.executable, "-m", f"{room}.cli", "--help"]) for _ in range(runs)]
        print(f"{room + ' --help':16} min {min(taken):.3f} s  median {statistics.median(taken):.3f} s")


if __name__ == "__main__":
    main()
