package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/drover/drover/controller/bootstrap"
	"github.com/drover/drover/controller/membership"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
)

// Fleets of several controllers in one process, each with a port that it keeps.

// machine is a host without a controller yet.
func machine(t *testing.T) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "dc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return &host{t: t, data: filepath.Join(dir, "data"), rundir: filepath.Join(dir, "run"), addr: l.Addr().String()}
}

// on starts the controller at its own address. An error is why it ended before
// it answered.
func (h *host) on() error {
	h.t.Helper()
	ready := make(chan net.Addr, 1)
	h.stdout = &buffer{}
	log := slog.New(slog.NewTextHandler(&testWriter{h.t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	cfg := Config{DataDir: h.data, RunDir: h.rundir, Listen: h.addr, Version: "test", Logger: log, Stdout: h.stdout, Registries: noHub, OnReady: func(a net.Addr) { ready <- a }}
	c, err := load(cfg)
	if err != nil {
		return err
	}
	c.tuning = h.tuning
	ctx, cancel := context.WithCancel(context.Background())
	h.c, h.cancel, h.ended = c, cancel, make(chan error, 1)
	go func() { h.ended <- c.end(c.run(ctx)) }()
	h.t.Cleanup(h.off)
	select {
	case <-ready:
		return nil
	case err := <-h.ended:
		cancel()
		h.c = nil
		return errors.Join(errors.New("it ended before it was ready"), err)
	case <-time.After(20 * time.Second):
		return errors.New("it is not ready after 20 s")
	}
}

// off stops the controller, if it runs.
func (h *host) off() {
	h.t.Helper()
	if h.c == nil {
		return
	}
	h.c = nil
	h.cancel()
	select {
	case err := <-h.ended:
		if err != nil && !errors.Is(err, membership.ErrRemoved) {
			h.t.Errorf("a controller ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		h.t.Error("a controller does not end")
	}
}

func (h *host) id() string { return h.files(identity.AgentPKI(h.data)).Principal.ID }

// token admits controllers.
func (h *host) token() pki.Token {
	h.t.Helper()
	tk, err := pki.NewToken(pki.Pin(h.ca.Cert.Raw))
	if err != nil {
		h.t.Fatal(err)
	}
	h.propose(&dv1.Command{Of: &dv1.Command_PutToken{PutToken: &dv1.PutToken{Token: &dv1.Token{Id: tk.ID, Hash: tk.Hash(), Role: "controller"}}}})
	return tk
}

func (h *host) joining(to *host, tk pki.Token, name string) identity.JoinOptions {
	return identity.JoinOptions{DataDir: h.data, Token: tk, Addr: to.addr, NodeName: name, Hosts: []string{"127.0.0.1"}, Agent: "127.0.0.1:1", Controller: h.addr, Now: time.Now()}
}

// fleet is n controllers; one, three or five of them vote.
func fleet(t *testing.T, n int) (all []*host, tk pki.Token) {
	t.Helper()
	first := machine(t)
	if _, err := bootstrap.Up(bootstrap.Options{DataDir: first.data, NodeName: "a", Hosts: []string{"127.0.0.1"}, Controller: first.addr, Pool: "10.210.0.0/16", Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	first.ca = authority(t, first.data)
	if err := first.on(); err != nil {
		t.Fatal(err)
	}
	tk = first.token()
	all = append(all, first)
	for i := range n - 1 {
		h := machine(t)
		h.ca = first.ca
		if err := identity.Join(t.Context(), h.joining(first, tk, string(rune('b'+i)))); err != nil {
			t.Fatal(err)
		}
		if err := h.on(); err != nil {
			t.Fatal(err)
		}
		all = append(all, h)
	}
	vote := n - (n+1)%2
	until(t, fmt.Sprintf("%d voters", vote), func() bool {
		for _, h := range all {
			if len(h.voters()) != vote || h.leader() == "" {
				return false
			}
		}
		return true
	})
	return all, tk
}

// until polls what has no event of its own.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not there after 30 s: %s", what)
		}
	}
}

func (h *host) voters() (ids []string) {
	f := h.c.node.Load().Raft().GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	for _, s := range f.Configuration().Servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, string(s.ID))
		}
	}
	return ids
}

func (h *host) leader() string {
	_, id := h.c.node.Load().Leader()
	return id
}

// split tells the controller that leads from the others.
func split(t *testing.T, all []*host) (leader *host, others []*host) {
	t.Helper()
	until(t, "a leader", func() bool {
		leader, others = nil, nil
		for _, h := range all {
			if h.c.node.Load().Ready() {
				leader = h
			} else {
				others = append(others, h)
			}
		}
		return leader != nil
	})
	return leader, others
}
