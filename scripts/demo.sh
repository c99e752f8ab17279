#!/bin/sh
# The whole recipe on the pocket models, in folder $1 (default: demo): what `make demo` runs.
# Killed at any moment it goes on where it stopped when run again.
set -eu
demo=${1:-demo}
# Small tensors: waiting threads must not spin, which costs far more than it saves.
export OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false
started=$(date +%s)
mkdir -p "$demo"

step() { printf '\n== %s (%s s)\n' "$1" "$(($(date +%s) - started))"; }

step "problems: 500 held out, 1,600 to learn from"
[ -f "$demo/heldout.jsonl" ] || curate problems "$demo/heldout.jsonl" --count 500 --levels 2,3,4 --seed 1
[ -f "$demo/problems.jsonl" ] ||
    curate problems "$demo/problems.jsonl" --count 1600 --levels 2,3,4 --seed 2 --exclude "$demo/heldout.jsonl"
curate import "$demo/problems.jsonl" --out "$demo/out"

step "traces: sample the teacher, verify, label, split, pair"
curate run pocket --out "$demo/out" --set "decontaminate.against=['heldout=$demo/heldout.jsonl']"
curate status "$demo/out"

step "student: mid-training, SFT, DPO, RL, each evaluated on the held-out problems"
train all --recipe pocket --shards "$demo/out" --model pocket-base --out "$demo/run" --on "$demo/heldout.jsonl"

step "done: read the traces with \`curate view $demo/out\`"
