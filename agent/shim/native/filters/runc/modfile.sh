#!/bin/sh
# Prints the go.mod (go build -modfile) with which the shim is built: ours, but for a copy
# of runc's library, made below bin/, in which one file is replaced and one added, so that
# compiled seccomp filters can be kept. Without it the shim builds and works too, and each
# process compiles its filter. Names are by content: builds may do this at the same time.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../../../.." && pwd)
cd "$root"
src=$(${GO:-go} list -m -f '{{.Dir}}' github.com/opencontainers/runc)
sum=$(cat go.mod go.sum "$here"/*.txt "$here/modfile.sh" | sha256sum | cut -c1-16)
mod=bin/shim-$sum.mod
if [ ! -e "$mod" ]; then
  mkdir -p bin
  new=$(mktemp -d bin/.shim-XXXXXX)
  trap 'rm -rf "$new"' EXIT
  mkdir "$new/runc"
  cp -R "$src/go.mod" "$src/go.sum" "$src/internal" "$src/libcontainer" "$src/types" "$new/runc/"
  chmod -R u+w "$new/runc"
  cp "$here/seccomp_linux.go.txt" "$new/runc/libcontainer/seccomp/seccomp_linux.go"
  cp "$here/compiled_linux.go.txt" "$new/runc/libcontainer/seccomp/patchbpf/compiled_linux.go"
  mv -T "$new/runc" "bin/runc-$sum" 2>/dev/null || [ -d "bin/runc-$sum" ]
  cp go.sum "$new/shim.sum" && mv "$new/shim.sum" "bin/shim-$sum.sum"
  cp go.mod "$new/shim.mod"
  ${GO:-go} mod edit -replace="github.com/opencontainers/runc=./bin/runc-$sum" "$new/shim.mod"
  mv "$new/shim.mod" "$mod"
fi
echo "$root/$mod"
