package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"

	"github.com/drover/drover/agent/network"
	"github.com/drover/drover/agent/topology"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/bulk"
)

// applied is a node's network in memory.
type applied struct {
	all    chan network.Topology
	fails  int
	unlike []string
}

func (a *applied) Apply(_ context.Context, t network.Topology) error {
	a.all <- t
	if a.fails > 0 {
		a.fails--
		return errors.New("no")
	}
	return nil
}

func (a *applied) Check(context.Context) ([]string, error) { return a.unlike, nil }

func (a *applied) Ways(context.Context) ([]network.Way, error) {
	return []network.Way{{Peer: "n2", Name: "b", Link: "eth0", Direct: true, MTU: 1500, RTT: 7}, {Peer: "n3"}}, nil
}

// Controllers are answered once what the node was told is in place, and with what that was.
func TestControllersAskAboutTheNetwork(t *testing.T) {
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	top, err := topology.Open(db)
	if err != nil {
		t.Fatal(err)
	}
	f := &fabric{top: top, self: "n1", net: &applied{unlike: []string{"link dvn1 is missing"}}, log: slog.New(slog.DiscardHandler), done: make(chan struct{})}
	short, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer stop()
	if _, err := f.Check(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("before anything was applied: %v", err)
	}
	f.mark(top.Version())
	c, err := f.Check(t.Context())
	if err != nil || !slices.Equal(c.Differences, []string{"link dvn1 is missing"}) || c.Peers == "" || len(c.Networks) != 0 {
		t.Errorf("it says %+v, %v", c, err)
	}
	ways, err := f.Ways(t.Context())
	if err != nil || !slices.Equal(ways, []bulk.Way{{Node: "n2", Link: "eth0", Direct: true, MTU: 1500, RTT: 7}, {Node: "n3"}}) {
		t.Errorf("ways are %+v, %v", ways, err)
	}
}

func TestTheNetworkFollowsWhatTheNodeIsTold(t *testing.T) {
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "db"), 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	synctest.Test(t, func(t *testing.T) {
		top, err := topology.Open(db)
		if err != nil {
			t.Fatal(err)
		}
		net := &applied{all: make(chan network.Topology), fails: 1}
		f := &fabric{top: top, self: "n1", net: net, log: slog.New(slog.DiscardHandler), done: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		short, stop := context.WithTimeout(ctx, time.Second)
		defer stop()
		if err := f.Await(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("before anything was applied: %v", err)
		}
		go func() { ended <- f.run(ctx) }()
		<-net.all
		if err := f.Await(ctx); err != nil { // although it failed
			t.Error(err)
		}
		began := time.Now()
		<-net.all // by itself
		if d := time.Since(began); d != fabricPause {
			t.Errorf("tried again after %v", d)
		}
		id := bytes.Repeat([]byte{1}, 32)
		p, err := topology.Parse(&dv1.Topology{Networks: []*dv1.Network{{Id: id, Name: "red", Number: 1, Subnets: []*dv1.Subnet{{Prefix: "10.0.0.0/20", Gateway: "10.0.0.1"}}}}})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		top.Apply(p)
		waited := make(chan error)
		go func() { waited <- f.Await(ctx) }()
		synctest.Wait()
		select {
		case <-waited:
			t.Error("a network that is not applied yet is there")
		default:
		}
		if got := <-net.all; len(got.Networks) != 1 || got.Self != "n1" {
			t.Errorf("applied was %+v", got)
		}
		if err := <-waited; err != nil || f.Network(id).GetName() != "red" {
			t.Errorf("then: %v", err)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
