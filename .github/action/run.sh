#!/usr/bin/env bash
# What the action runs: builds softlm once, runs it, and leaves its JSON where later steps find it.
#
# SOFTLM_ACTION_RUN      the arguments, as a shell would split them; nothing in them is expanded or run
# SOFTLM_ACTION_SOURCE   this repository
# SOFTLM                 a program to take instead of building one
# GITHUB_OUTPUT, GITHUB_STEP_SUMMARY, RUNNER_TEMP   as GitHub sets them
set -euo pipefail

program=${SOFTLM:-}
if [ -z "$program" ]; then
    root=$HOME/.softlm-action
    program=$root/bin/softlm
    [ -x "$program" ] || cargo install --locked --path "$SOFTLM_ACTION_SOURCE" --root "$root"
fi

# xargs knows quotes as a shell does, and nothing else of it.
arguments=()
while IFS= read -r -d '' argument; do arguments+=("$argument"); done < <(printf '%s' "$SOFTLM_ACTION_RUN" | xargs printf '%s\0')

json=$(mktemp "${RUNNER_TEMP:-/tmp}/softlm-XXXXXX.json")
echo "json=$json" >> "$GITHUB_OUTPUT"
status=0
"$program" "${arguments[@]}" --json > "$json" || status=$?
{
    echo "### softlm ${arguments[0]:-}: exit status $status"
    echo
    echo '```json'
    # Weights by name and layer are of no interest to people who look at a summary.
    head -c 4000 "$json"
    echo
    echo '```'
} >> "$GITHUB_STEP_SUMMARY"
exit "$status"
