package server

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	maxServers = 3               // that are asked for one query, as in docker
	askWithin  = 4 * time.Second // each
	// Bounds of queries that wait for other servers: of one container, and of all. Each
	// has a socket.
	maxForwards    = 256
	maxAllForwards = 4096
)

// upstream asks other servers. Safe for concurrent use.
type upstream struct {
	from  dialer // in the host's network namespace
	host  *hostServers
	slots chan struct{}
	port  string
}

// dialer connects in one network namespace to an address; udp or tcp.
type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// server is one to ask, from a namespace.
type server struct {
	addr netip.Addr
	from dialer
}

func newUpstream(root string) *upstream {
	return &upstream{from: new(net.Dialer).DialContext, host: &hostServers{root: root}, slots: make(chan struct{}, maxAllForwards), port: "53"}
}

// ask returns the first answer that a server knows, nil if there is none.
func (u *upstream) ask(ctx context.Context, network string, all []server, q *dns.Msg) *dns.Msg {
	select {
	case u.slots <- struct{}{}:
		defer func() { <-u.slots }()
	default:
		return new(dns.Msg).SetRcode(q, dns.RcodeRefused)
	}
	for _, s := range all[:min(len(all), maxServers)] {
		m := u.exchange(ctx, network, s, q)
		if m == nil || m.Rcode == dns.RcodeServerFailure || m.Rcode == dns.RcodeRefused {
			continue
		}
		m.Compress = true
		return m
	}
	return nil
}

func (u *upstream) exchange(ctx context.Context, network string, s server, q *dns.Msg) *dns.Msg {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	conn, err := s.from(ctx, network, net.JoinHostPort(s.addr.String(), u.port))
	if err != nil {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // the client heeds only ctx's deadline
	defer func() { stop(); _ = conn.Close() }()
	// Some servers send more than they were allowed to.
	c := &dns.Client{Timeout: askWithin, UDPSize: dns.MaxMsgSize}
	m, _, err := c.ExchangeWithConnContext(ctx, q, &dns.Conn{Conn: conn})
	if err != nil {
		return nil
	}
	return m
}

// hostServers is the servers that the host uses, read again when its file changes.
type hostServers struct {
	root string

	mu   sync.Mutex // guards the fields below; held over reads of small local files
	seen [2]os.FileInfo
	all  []netip.Addr
}

// resolvedStub is where systemd-resolved listens. Its own servers are in a file of its.
const resolvedStub = "127.0.0.53"

func (h *hostServers) servers() []netip.Addr {
	h.mu.Lock()
	defer h.mu.Unlock()
	files := [2]string{filepath.Join(h.root, "etc/resolv.conf"), filepath.Join(h.root, "run/systemd/resolve/resolv.conf")}
	var now [2]os.FileInfo
	same := true
	for i, f := range files {
		now[i], _ = os.Stat(f)
		same = same && now[i] != nil && h.seen[i] != nil && os.SameFile(now[i], h.seen[i]) && now[i].ModTime().Equal(h.seen[i].ModTime()) && now[i].Size() == h.seen[i].Size() ||
			same && now[i] == nil && h.seen[i] == nil && h.all != nil
	}
	if same {
		return h.all
	}
	all, err := nameservers(files[0])
	if err == nil && len(all) == 1 && all[0].String() == resolvedStub {
		var real []netip.Addr
		if real, err = nameservers(files[1]); len(real) > 0 {
			all = real
		}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) { // it is read again for the next query
		return h.all
	}
	h.seen, h.all = now, all
	return h.all
}

// nameservers returns those of a resolv.conf, not nil.
func nameservers(file string) ([]netip.Addr, error) {
	out := []netip.Addr{}
	b, err := os.ReadFile(file)
	if err != nil {
		return out, err
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, a)
		}
	}
	return out, nil
}
