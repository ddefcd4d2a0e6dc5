package server

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/miekg/dns"

	"github.com/drover/drover/agent/resolver/resolverapi"
)

const (
	ttl = 600 // seconds, as docker's
	// minRecord is what an address takes in an answer at least: a pointer to the name, type,
	// class, TTL, length and four bytes.
	minRecord = 16
)

// resolver answers the queries of one container. Safe for concurrent use.
type resolver struct {
	table    *table
	upstream *upstream
	forwards chan struct{} // a slot for each query of this container that is forwarded
	conf     atomic.Pointer[resolverapi.Sandbox]
	netns    dialer
	life     context.Context // ends what is being asked
	end      context.CancelFunc
}

// ServeDNS implements dns.Handler: from the table, else from servers outside.
func (r *resolver) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	if len(q.Question) == 0 {
		return
	}
	m := r.local(q, limit(w, q))
	if m == nil {
		m = r.outside(w.LocalAddr().Network(), q)
	}
	if err := w.WriteMsg(m); err != nil && m.Rcode != dns.RcodeServerFailure {
		// The other server's answer can't be sent on: the client need not wait for it.
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
	}
}

// limit returns how long an answer may be.
func limit(w dns.ResponseWriter, q *dns.Msg) int {
	if w.LocalAddr().Network() == "tcp" {
		return dns.MaxMsgSize
	}
	if o := q.IsEdns0(); o != nil {
		return max(dns.MinMsgSize, int(o.UDPSize()))
	}
	return dns.MinMsgSize
}

// local answers what the table knows, nil if it does not.
func (r *resolver) local(q *dns.Msg, size int) *dns.Msg {
	of := q.Question[0]
	in := r.conf.Load().Networks
	if of.Qclass != dns.ClassINET {
		return nil
	}
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable, m.Compress = true, true
	switch of.Qtype {
	case dns.TypeA, dns.TypeAAAA:
		all, known := r.table.lookup(in, of.Name)
		if !known {
			return nil
		}
		m.Answer, m.Truncated = records(of, all, size/minRecord)
	case dns.TypeMX: // that there is none makes senders of mail ask for the address
		if _, known := r.table.lookup(in, of.Name); !known {
			return nil
		}
	case dns.TypePTR:
		ip, ok := reversed(of.Name)
		if !ok {
			return nil
		}
		name := r.table.nameOf(in, ip)
		if name == "" {
			return nil
		}
		m.Answer = []dns.RR{&dns.PTR{Hdr: header(of), Ptr: dns.Fqdn(name)}}
	default:
		return nil
	}
	short := m.Truncated
	m.Truncate(size)
	m.Truncated = m.Truncated || short
	return m
}

// records returns some of the addresses of the type that is asked for, at most n, in
// random order, and whether there are more.
func records(of dns.Question, all []netip.Addr, n int) (out []dns.RR, more bool) {
	var fit []netip.Addr
	for _, a := range all {
		if a.Is4() == (of.Qtype == dns.TypeA) {
			fit = append(fit, a)
		}
	}
	for i := range min(n, len(fit)) {
		j := i + rand.IntN(len(fit)-i)
		fit[i], fit[j] = fit[j], fit[i]
		if fit[i].Is4() {
			out = append(out, &dns.A{Hdr: header(of), A: fit[i].AsSlice()})
		} else {
			out = append(out, &dns.AAAA{Hdr: header(of), AAAA: fit[i].AsSlice()})
		}
	}
	return out, len(fit) > n
}

func header(of dns.Question) dns.RR_Header {
	return dns.RR_Header{Name: of.Name, Rrtype: of.Qtype, Class: dns.ClassINET, Ttl: ttl}
}

// reversed returns the address in a name below in-addr.arpa or ip6.arpa.
func reversed(name string) (netip.Addr, bool) {
	name = strings.ToLower(name)
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		return parse(strings.Split(rest, "."), 4, 1, ".")
	}
	if rest, ok := strings.CutSuffix(name, ".ip6.arpa."); ok {
		return parse(strings.Split(rest, "."), 32, 4, ":")
	}
	return netip.Addr{}, false
}

// parse returns the address of reversed labels, of which each is a part and some make a
// group.
func parse(labels []string, n, group int, between string) (netip.Addr, bool) {
	if len(labels) != n {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := range labels {
		l := labels[n-1-i]
		if group > 1 && len(l) != 1 {
			return netip.Addr{}, false
		}
		if i > 0 && i%group == 0 {
			b.WriteString(between)
		}
		b.WriteString(l)
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}

// outside asks other servers.
func (r *resolver) outside(network string, q *dns.Msg) *dns.Msg {
	c := r.conf.Load()
	of := q.Question[0]
	if c.NdotsSet && (of.Qtype == dns.TypeA || of.Qtype == dns.TypeAAAA) && !strings.Contains(strings.TrimSuffix(of.Name, "."), ".") {
		// The client tries its search domains next.
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		return m
	}
	select {
	case r.forwards <- struct{}{}:
		defer func() { <-r.forwards }()
	default:
		return new(dns.Msg).SetRcode(q, dns.RcodeRefused)
	}
	if m := r.upstream.ask(r.life, network, r.servers(c), q); m != nil {
		return m
	}
	return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
}

// servers returns which servers to ask, and from where. As in docker, those that the
// user named are asked from within the container's namespace, also where no network
// leads outside: they may be in one of them.
func (r *resolver) servers(c *resolverapi.Sandbox) []server {
	var out []server
	for _, a := range c.Servers {
		if a.String() != resolverapi.Address {
			out = append(out, server{a, r.netns})
		}
	}
	if len(c.Servers) > 0 || !c.Outside {
		return out
	}
	for _, a := range r.upstream.host.servers() {
		out = append(out, server{a, r.upstream.from})
	}
	return out
}
