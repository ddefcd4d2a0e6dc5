#!/bin/bash
# The demo: hosts as network namespaces on one bridge: a registry host, three
# hosts with controller and agent, one with an agent only; and a walk through what
# one host, and then the fleet, can do. Usage: demo.sh up|env|down
set -uo pipefail
cd "$(dirname "$0")/.."

BIN=$PWD/bin/drover
DIR=${DROVER_DEMO_DIR:-/var/tmp/drover-demo}
NET=${DROVER_DEMO_NET:-10.88.77}
BRIDGE=dvdemo0
REGISTRY=$NET.2:5000
HOST_A=$NET.11
HOSTS=(a b c d)
addr() { case $1 in a) echo "$NET.11" ;; b) echo "$NET.12" ;; c) echo "$NET.13" ;; d) echo "$NET.14" ;; esac; }
SOCK=$DIR/a/run/drover.sock
BOLD='' PLAIN=''
[ -t 1 ] && BOLD=$'\033[1m' PLAIN=$'\033[0m'

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
  host reg $NET.2 || fail "cannot make the registry's namespace"
  for h in "${HOSTS[@]}"; do host "$h" "$(addr "$h")" || fail "cannot make the namespace of host $h"; done
}

registry_up() {
  inns dvdemo-reg setsid docker-registry serve "$DIR/registry.yml" >"$DIR/registry.log" 2>&1 </dev/null &
  echo $! >"$DIR/registry.pid"
  for _ in $(seq 100); do curl -fsS "http://$REGISTRY/v2/" >/dev/null 2>&1 && break; sleep 0.1; done
  curl -fsS "http://$REGISTRY/v2/" >/dev/null || fail "the registry does not answer: see $DIR/registry.log"
}

registry() {
  mkdir -p "$DIR/registry"
  cat >"$DIR/registry.yml" <<YML
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $DIR/registry}, delete: {enabled: true}}
http: {addr: "$REGISTRY"}
YML
  registry_up
  echo "building images from this repository's sources and pushing them to $REGISTRY"
  CGO_ENABLED=0 go run ./deploy/images/build -registry "$REGISTRY" || fail "the images could not be built"
}

configure() { # name address
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
}

drover_host() { # name: the first host makes the fleet
  configure "$1" "$(addr "$1")"
  inns "dvdemo-$1" "$BIN" up --detach --config "$DIR/$1/config.yaml" || fail "drover did not come up on $1"
}

join() { # name, token create's flags…: a further host
  local name=$1 token; shift
  configure "$name" "$(addr "$name")"
  token=$(drover token create -q "$@") || fail "no token"
  printf '\n%s$ drover join %s --token $TOKEN%s   (on host %s, as %s)\n' "$BOLD" "$HOST_A" "$PLAIN" "$name" "$*"
  inns "dvdemo-$name" "$BIN" join "$HOST_A" --token "$token" --detach --config "$DIR/$name/config.yaml" || fail "host $name could not join"
}

on() { # host, command…: as typed on that host
  local h=$1; shift
  printf '\n%s%s$ %s%s\n' "$BOLD" "$h" "$*" "$PLAIN"
  DROVER_HOST=unix://$DIR/$h/run/drover.sock nsenter --net=/var/run/netns/"dvdemo-$h" -- bash -c "$*"
  local rc=$?
  [ $rc = 0 ] || printf '(exit code %d)\n' $rc
}

leader() { drover controller ls | awk '$2 == "leader" {print $1}'; }

fleet() {
  echo; echo "--- the fleet: two more hosts with controllers, and one with an agent only"
  join b --role controller
  join c --role controller
  join d --role agent --socket-role admin
  for _ in $(seq 100); do [ "$(drover controller ls | grep -c -e ' voter ' -e ' leader ')" = 3 ] && break; sleep 0.1; done
  show drover controller ls
  show drover node ls
  on a drover run -d -p 8080:80 web
  on b drover run -d -p 8080:80 web
  on c drover run -d -p 8080:80 web
  on d drover run -d -p 8080:80 web
  on d drover run -d -p 8080:80 web
  show drover ps
  for h in "${HOSTS[@]}"; do show curl -sS "http://$(addr "$h"):8080/"; done
  on c drover run --each --rm alpine uname -n
  on b drover run --rm --on node==c alpine "sh -c 'echo I am on \$DROVER_NODE'"
  command -v docker >/dev/null && show "docker -H unix://$DIR/b/run/drover.sock run --rm -l io.drover.on=node==c alpine sh -c 'echo docker got me to \$DROVER_NODE'"
  on d drover run -d --name far --on node==b alpine "sh -c 'echo said on \$DROVER_NODE; exec sleep 1000'"
  on c drover logs far
  on a drover exec far hostname
  echo; echo "--- an image that one host holds needs no registry"
  on a drover pull ubuntu
  kill "$(cat "$DIR/registry.pid")"; sleep 0.3
  on d drover run --rm --on node==d ubuntu echo "from a peer"
  registry_up
  echo; echo "--- the leading controller dies"
  local l; l=$(leader)
  on "$([ "$l" = a ] && echo b || echo a)" "kill -9 \$(pgrep -f '^$BIN controller --data-dir $DIR/$l/') && time drover run --rm alpine echo written again"
  show drover controller ls
  echo; echo "--- a host is cut off"
  ip link set dvd-d down; sleep 3
  on a drover ps
  ip link set dvd-d up; sleep 2
  on a drover ps
  on b drover run --rm --on node==d alpine true
  on b drover trace last
  show drover info '| sed -n 1,30p'
  show drover rm -f '$(drover ps -aq)'
}

show() { # command…: shows it and its output as a user sees them
  printf '\n%s$ %s%s\n' "$BOLD" "$*" "$PLAIN"
  eval "$@"
  local rc=$?
  [ $rc = 0 ] || printf '(exit code %d)\n' $rc
}

terminal() { # what is typed; command…: runs it on a terminal of its own
  local typed=$1; shift
  printf '\n%s$ %s%s   (on a terminal, typing: %s)\n' "$BOLD" "$*" "$PLAIN" "${typed//$'\n'/ ⏎ }"
  { sleep 1; while IFS= read -r line; do printf '%s\n' "$line"; sleep 0.4; done <<<"$typed"; } |
    script -qec "$*" /dev/null | if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9;?]*[A-Za-z]//g'; fi
  local rc=${PIPESTATUS[1]}
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
  drover_host a
  walk
  fleet
  cat <<TXT

drover is up on hosts a, b, c ($HOST_A and on, with controllers) and d (agent only). Go on by hand:
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
  for ns in reg "${HOSTS[@]}"; do
    [ -e /var/run/netns/dvdemo-$ns ] || continue
    left=$(ip netns pids dvdemo-$ns); [ -n "$left" ] && kill -KILL $left 2>/dev/null
    ip netns del dvdemo-$ns
  done
  for h in reg "${HOSTS[@]}"; do ip link del "dvd-$h" 2>/dev/null; done
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
