#!/bin/bash
# The demo: hosts as network namespaces on one bridge, a registry host and a
# drover host, and a walk through what one host can do. Usage: demo.sh up|env|down
set -uo pipefail
cd "$(dirname "$0")/.."

BIN=$PWD/bin/drover
DIR=${DROVER_DEMO_DIR:-/var/tmp/drover-demo}
NET=${DROVER_DEMO_NET:-10.88.77}
BRIDGE=dvdemo0
REGISTRY=$NET.2:5000
HOST_A=$NET.11
SOCK=$DIR/a/run/drover.sock

fail() { echo "demo: $*" >&2; exit 1; }
inns() { nsenter --net=/var/run/netns/"$1" -- "${@:2}"; }

host() { # name address
  ip netns add "dvdemo-$1" || return
  ip link add "dvd-$1" type veth peer name eth0 netns "dvdemo-$1" || return
  ip link set "dvd-$1" master $BRIDGE up || return
  ip -n "dvdemo-$1" addr add "$2/24" dev eth0 && ip -n "dvdemo-$1" link set eth0 up && ip -n "dvdemo-$1" link set lo up &&
    ip -n "dvdemo-$1" route add default via $NET.1
}

network() {
  ip link add $BRIDGE type bridge && ip addr add $NET.1/24 dev $BRIDGE && ip link set $BRIDGE up || fail "cannot make the bridge $BRIDGE"
  host reg $NET.2 && host a $HOST_A || fail "cannot make the hosts' namespaces"
}

registry() {
  mkdir -p "$DIR/registry"
  cat >"$DIR/registry.yml" <<YML
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $DIR/registry}, delete: {enabled: true}}
http: {addr: "$REGISTRY"}
YML
  inns dvdemo-reg setsid docker-registry serve "$DIR/registry.yml" >"$DIR/registry.log" 2>&1 </dev/null &
  echo $! >"$DIR/registry.pid"
  for _ in $(seq 100); do curl -fsS "http://$REGISTRY/v2/" >/dev/null 2>&1 && break; sleep 0.1; done
  curl -fsS "http://$REGISTRY/v2/" >/dev/null || fail "the registry does not answer: see $DIR/registry.log"
  echo "building images from this repository's sources and pushing them to $REGISTRY"
  CGO_ENABLED=0 go run ./deploy/images/build -registry "$REGISTRY" || fail "the images could not be built"
}

drover_host() { # name address
  mkdir -p "$DIR/$1"
  cat >"$DIR/$1/config.yaml" <<YML
data-dir: $DIR/$1/data
run-dir: $DIR/$1/run
node-name: $1
advertise: $2
registries:
  - name: docker.io
    endpoint: $REGISTRY
    plain-http: true
YML
  inns "dvdemo-$1" "$BIN" up --detach --config "$DIR/$1/config.yaml" || fail "drover did not come up on $1"
}

show() { # command…: shows it and its output as a user sees them
  printf '\n\033[1m$ %s\033[0m\n' "$*"
  eval "$@"
  local rc=$?
  [ $rc = 0 ] || printf '(exit code %d)\n' $rc
}

terminal() { # what is typed; command…: runs it on a terminal of its own
  local typed=$1; shift
  printf '\n\033[1m$ %s\033[0m   (on a terminal, typing: %s)\n' "$*" "${typed//$'\n'/ ⏎ }"
  { sleep 1; while IFS= read -r line; do printf '%s\n' "$line"; sleep 0.4; done <<<"$typed"; } |
    script -qec "$*" /dev/null
  local rc=$?
  printf '(exit code %d)\n' $rc
}

walk() {
  export DROVER_HOST=unix://$SOCK PATH=$PWD/bin:$PATH
  show drover run hello-world
  show drover run hello-world '| head -3'
  show drover ps
  show drover ps -a
  show drover info
  show drover images
  show drover pull alpine
  show drover images
  show drover rmi alpine
  show drover rmi hello-world
  show drover run -d --name web -p 8080:80 web
  show curl -sS "http://$HOST_A:8080/"
  show drover run -d -p 8080:80 web
  terminal $'echo $((6*7))\nhostname\nexit 3' drover run -it --name shell ubuntu /bin/sh
  terminal $'ps | head -3\nexit' drover exec -it web /bin/sh
  show drover stop '$(drover ps -aq)'
  show drover ps
  show drover ps -a
  show drover start web
  show curl -sS "http://$HOST_A:8080/"
  show drover run --rm alpine echo out of an alpine
  if command -v docker >/dev/null; then
    show "echo through a pipe | docker -H unix://$SOCK run --rm -i alpine cat"
    show "docker -H tcp://$HOST_A:7443 --tlsverify --tlscacert $DIR/a/data/admin/ca.pem --tlscert $DIR/a/data/admin/cert.pem --tlskey $DIR/a/data/admin/key.pem ps"
    show docker -H unix://$SOCK logs web
  fi
  show drover run --rm alpine true
  show drover trace last
  show drover rm -f '$(drover ps -aq)'
}

up() {
  [ "$(id -u)" = 0 ] || fail "needs root: it makes network namespaces"
  down
  mkdir -p "$DIR"
  network
  registry
  drover_host a $HOST_A
  walk
  cat <<TXT

drover is up on host a ($HOST_A). Go on by hand:
  eval "\$(make demo-env)"      drover on the PATH, pointed at the demo
  drover run -it ubuntu /bin/sh
  make demo-down               removes all of it
TXT
}

env_() { printf 'export PATH=%q:$PATH\nexport DROVER_HOST=unix://%q\n' "$PWD/bin" "$SOCK"; }

down() {
  if [ -S "$SOCK" ]; then
    DROVER_HOST=unix://$SOCK timeout 60 "$BIN" ps -aq 2>/dev/null | DROVER_HOST=unix://$SOCK xargs -r timeout 60 "$BIN" rm -f >/dev/null 2>&1
  fi
  pids() { for p in /proc/[0-9]*; do { tr "\0" " " <"$p/cmdline"; } 2>/dev/null | grep -qF -- "$DIR/" && [ "${p#/proc/}" != $$ ] && echo "${p#/proc/}"; done; return 0; }
  for sig in TERM KILL; do
    left=$(pids); [ -z "$left" ] && break
    # shellcheck disable=SC2086
    kill -$sig $left 2>/dev/null
    for _ in $(seq 50); do [ -z "$(pids)" ] && break; sleep 0.1; done
  done
  for ns in reg a; do
    [ -e /var/run/netns/dvdemo-$ns ] || continue
    left=$(ip netns pids dvdemo-$ns); [ -n "$left" ] && kill -KILL $left 2>/dev/null
    ip netns del dvdemo-$ns
  done
  ip link del $BRIDGE 2>/dev/null
  awk -v d="$DIR/" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | sort -r | while read -r m; do umount -l "$m" 2>/dev/null; done
  for cg in /sys/fs/cgroup/*/drover /sys/fs/cgroup/drover; do
    [ -d "$cg" ] && find "$cg" -depth -type d -exec rmdir {} + 2>/dev/null
  done
  rm -rf "$DIR"
}

case ${1:-} in
  up) up ;;
  env) env_ ;;
  down) down ;;
  *) echo "usage: $0 up|env|down" >&2; exit 2 ;;
esac
