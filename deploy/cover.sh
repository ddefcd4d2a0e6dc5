#!/bin/bash
# Prints, for each package, the share of statements that tests reach, and how many
# lines of tests there are for each line of code. Usage: cover.sh PROFILE
set -euo pipefail
cd "$(dirname "$0")/.."
module=$(go list -m)
# A statement counts once, however many packages' tests reach it.
reached=$(awk -v m="$module/" 'NR > 1 {
    split($1, at, ":"); dir = at[1]; sub(m, "", dir); sub("/[^/]*$", "", dir)
    key = $1; if (!(key in n)) { n[key] = $2; of[key] = dir }
    if ($3 > 0) hit[key] = 1
  } END { for (k in n) { all[of[k]] += n[k]; if (k in hit) got[of[k]] += n[k] }
    for (d in all) printf "%s %.0f\n", d, 100 * got[d] / all[d] }' "$1")
lines() { { [ $# -eq 0 ] || cat "$@"; } | wc -l; }
printf '%-32s %8s %8s %8s %9s\n' package code tests ratio reached
total_code=0 total_tests=0
while read -r dir; do
  mapfile -t code < <(git ls-files "$dir" | grep -E "^$dir/[^/]*\.go$" | grep -v -e _test.go -e '\.pb\.go' -e '\.connect\.go' || true)
  mapfile -t tests < <(git ls-files "$dir" | grep -E "^$dir/[^/]*_test\.go$" || true)
  c=$(lines "${code[@]}") t=$(lines "${tests[@]}")
  total_code=$((total_code + c)) total_tests=$((total_tests + t))
  share=$(awk -v d="$dir" '$1 == d { print $2 "%" }' <<<"$reached")
  printf '%-32s %8d %8d %8s %9s\n' "$dir" "$c" "$t" "$(awk -v c="$c" -v t="$t" 'BEGIN { if (c) printf "%.2f", t / c; else print "-" }')" "${share:--}"
done < <(git ls-files '*.go' | xargs -n1 dirname | sort -u)
printf '%-32s %8d %8d %8s\n' all $total_code $total_tests "$(awk -v c=$total_code -v t=$total_tests 'BEGIN { printf "%.2f", t / c }')"
