#!/usr/bin/env bash
# Gate a change in any CI service: measure a recipe by turns with the current source and with
# another revision, and say whether quality or speed became worse.
#
#   ci/gate.sh REVISION [RECIPE] [OUT]
#
# Leaves gate.xml (JUnit), comment.md and gate.txt in OUT. The exit code is that of the gate: 0 PASS,
# 1 REGRESSED, 3 INCONCLUSIVE, 2 an error. With LLMOPT_GATE_ALLOW_INCONCLUSIVE=1 an open question
# does not fail the job. LLMOPT is the command to run, if not `llmopt`.
set -uo pipefail

revision=${1:?usage: ci/gate.sh REVISION [RECIPE] [OUT]}
recipe=${2:-recipes/gate.yaml}
out=${3:-gate-out}
mkdir -p "$out"

${LLMOPT:-llmopt} gate --run "$recipe" --against "$revision" --out "$out" \
    --junit "$out/gate.xml" --markdown "$out/comment.md" --history "$out/history" \
    | tee "$out/gate.txt"
code=${PIPESTATUS[0]}

if [ "$code" -eq 3 ] && [ "${LLMOPT_GATE_ALLOW_INCONCLUSIVE:-0}" = 1 ]; then
    echo "inconclusive; not held against the change" >&2
    exit 0
fi
exit "$code"
