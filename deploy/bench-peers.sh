#!/bin/bash
# Installs what `make bench` compares drover with, on Debian and Ubuntu: Docker Engine,
# containerd and runc. Their services are not started. Where they can't be installed, it says so;
# the benchmark then leaves those peers out.
set -euo pipefail

declare -A need=([dockerd]=docker.io [docker]=docker.io [containerd]=containerd [ctr]=containerd [runc]=runc [iptables]=iptables)
missing=()
for cmd in "${!need[@]}"; do
  command -v "$cmd" >/dev/null || missing+=("${need[$cmd]}")
done
[ ${#missing[@]} -eq 0 ] && exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "drover: not compared with what is missing here: ${missing[*]}" >&2
  exit 0
fi
echo "drover: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
policy=/usr/sbin/policy-rc.d # keeps services from being started
made=
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
  made=$policy
fi
trap 'rm -f "$log" $made' EXIT
if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -5 "$log" >&2
  echo "drover: not compared with what could not be installed: ${missing[*]}" >&2
fi
