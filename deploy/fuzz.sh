#!/bin/bash
# Runs each fuzz target for a while. Usage: fuzz.sh TIME
set -euo pipefail
cd "$(dirname "$0")/.."
git grep -hoE '^func Fuzz[A-Za-z0-9_]*' -- '*_test.go' >/dev/null || { echo "no fuzz target was found" >&2; exit 1; }
git grep -oE '^func Fuzz[A-Za-z0-9_]*' -- '*_test.go' | sed 's/:func / /' | while read -r file target; do
  echo "$target in $(dirname "$file")"
  go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" "./$(dirname "$file")"
done
