#!/bin/sh
# The whole recipe on the pocket models, in folder $1 (default: demo): what `make demo` runs.
# Killed at any moment it goes on where it stopped when run again.
set -eu
demo=${1:-demo}
# Small tensors: two threads that share one cost more than they save as soon as anything else runs.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
started=$(date +%s)
mkdir -p "$demo"

step() { printf '\n== %s (%s s)\n' "$1" "$(($(date +%s) - started))"; }

# The recipe was tried out on problems of seeds 1 to 3; these are others.
step "problems: 1,500 held out, 3,000 for traces, 1,200 for RL alone"
[ -f "$demo/heldout.jsonl" ] || curate problems "$demo/heldout.jsonl" --count 1500 --levels 2,3,4 --seed 11
[ -f "$demo/problems.jsonl" ] ||
    curate problems "$demo/problems.jsonl" --count 3000 --levels 2,3,4 --seed 12 --exclude "$demo/heldout.jsonl"
[ -f "$demo/rl-problems.jsonl" ] ||
    curate problems "$demo/rl-problems.jsonl" --count 1200 --levels 2,3,4 --seed 13 \
        --exclude "$demo/heldout.jsonl" --exclude "$demo/problems.jsonl"
curate import "$demo/problems.jsonl" "$demo/rl-problems.jsonl" --out "$demo/out"

step "traces: sample the teacher, verify, label, split, pair"
curate generate --recipe pocket --executor local --tasks 2 --out "$demo/out"
curate run pocket --out "$demo/out" --set "decontaminate.against=['heldout=$demo/heldout.jsonl']"
curate status "$demo/out"

step "student: mid-training, SFT, DPO, RL, each evaluated on the held-out problems"
train all --recipe pocket --shards "$demo/out" --model pocket-base --out "$demo/run" --on "$demo/heldout.jsonl"

step "done: read the traces with \`curate view $demo/out\`"
