package network

import (
	"context"
	"fmt"
	"slices"

	"github.com/drover/drover/agent/network/routes"
)

// Check compares what the kernel has with what it should, and returns a sentence for each
// difference, in order. It changes nothing: what it finds is about to be mended, or can't
// be.
func (n *Network) Check(ctx context.Context) ([]string, error) {
	out, err := n.fabric.check()
	if err != nil {
		return nil, err
	}
	more, err := n.nft.check()
	if err != nil {
		return nil, err
	}
	out = append(out, more...)
	slices.Sort(out)
	return out, ctx.Err()
}

func (f *fabric) check() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h, err := f.look()
	if err != nil {
		return nil, err
	}
	want := f.plan(h)
	have, err := routes.Read(want.Picture, f.o.Prefix)
	if err != nil {
		return nil, fmt.Errorf("looking at the host's network: %w", err)
	}
	c := routes.Compare(have, want.Picture)
	var out []string
	for id, why := range want.left {
		out = append(out, fmt.Sprintf("network %s: %v", short(id), why))
	}
	for _, name := range c.AddLinks {
		if _, ok := have.Links[name]; ok {
			out = append(out, fmt.Sprintf("link %s is not as it should be: %s", name, have.Links[name].Unlike(want.Links[name])))
		} else {
			out = append(out, fmt.Sprintf("link %s is missing", name))
		}
	}
	for _, name := range c.DelLinks {
		out = append(out, fmt.Sprintf("link %s is left of a network that is not here", name))
	}
	for _, link := range c.Plug {
		out = append(out, fmt.Sprintf("link %s is not on bridge %s", link, want.Ports[link]))
	}
	for _, dst := range c.Set {
		if r, ok := have.Routes[dst]; ok {
			out = append(out, fmt.Sprintf("route %v goes by %v, not by %v", dst, r, want.Routes[dst]))
		} else {
			out = append(out, fmt.Sprintf("route %v is missing: it should go by %v", dst, want.Routes[dst]))
		}
	}
	for _, dst := range c.Del {
		out = append(out, fmt.Sprintf("route %v is left: it goes by %v", dst, have.Routes[dst]))
	}
	out = append(out, c.ReturnsUnlike(have)...)
	for _, p := range c.Learn {
		out = append(out, fmt.Sprintf("neighbour %v on %s is missing", p.Addr, p.Dev))
	}
	for _, p := range c.Unlearn {
		out = append(out, fmt.Sprintf("neighbour %v on %s is left", p.Addr, p.Dev))
	}
	return out, nil
}

func (t *table) check() ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, err := t.read()
	if err != nil {
		return nil, err
	}
	var out []string
	ok, err := t.complete(r)
	if err != nil {
		return nil, err
	}
	if !ok {
		return []string{fmt.Sprintf("firewall: the table %s is missing, or its rules are others", t.name())}, nil
	}
	if out, err = t.unlike(r); err != nil {
		return nil, err
	}
	for _, f := range t.plan(r) {
		out = append(out, fmt.Sprintf("firewall: chain %s of table %s %s has not drover's rules", f.ch.Name, familyName(f.ch.Table.Family), f.ch.Table.Name))
	}
	return out, nil
}
