#!/bin/bash
# Installs the packages that building, testing and the demo need on Debian and
# Ubuntu, and says in one line what is missing where it can't.
set -euo pipefail

# runc is a peer of tests: nothing else needs it.
declare -A need=(
  [gcc]=gcc [runc]=runc [ip]=iproute2 [nsenter]=util-linux [nft]=nftables
  [busybox]=busybox-static [docker-registry]=docker-registry [protoc]=protobuf-compiler
  [curl]=curl [jq]=jq [git]=git [script]=bsdutils [pkg-config]=pkg-config [ps]=procps
)
missing=()
for cmd in "${!need[@]}"; do
  command -v "$cmd" >/dev/null || missing+=("${need[$cmd]}")
done
[ -f /usr/include/stdlib.h ] || missing+=(libc6-dev)
[ -f /usr/include/seccomp.h ] || missing+=(libseccomp-dev) # the shim is linked with it

if ! command -v go >/dev/null; then
  echo "drover: Go 1.26 or newer is missing: install it and run this again" >&2
  exit 1
fi
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "drover: missing packages, and no way to install them here: ${missing[*]}" >&2
  exit 1
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "drover: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
# docker-registry must not start a service of its own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
  trap 'rm -f "$log" "$policy"' EXIT
fi
if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -5 "$log" >&2
  echo "drover: could not install ${missing[*]}" >&2
  exit 1
fi
