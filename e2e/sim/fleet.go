package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/drover/drover/controller/bootstrap"
	dv1 "github.com/drover/drover/pkg/api/v1"
	"github.com/drover/drover/pkg/api/v1/dv1connect"
	"github.com/drover/drover/pkg/identity"
	"github.com/drover/drover/pkg/pki"
	"github.com/drover/drover/pkg/unixsock"
)

// size is the composition of a fleet.
type size struct{ controllers, nodes, tasks int }

func (s size) String() string { return fmt.Sprintf("%d/%d/%d", s.controllers, s.nodes, s.tasks) }

// fleet is a set of running controllers and agents.
type fleet struct {
	size
	dir, stores string
	members     []*member
	agents      *process
	debug       *http.Client // of the agents
}

// member is a controller of the fleet.
type member struct {
	part controllerPart
	name string
	proc *process // nil: killed
	api  *http.Client
	dbg  *http.Client
}

// newFleet brings up a fleet of the given size whose agents have all their tasks.
// Durable files are below dir, which should be on a real disk; the stores of the agents,
// each of which would have its own disk, are in memory if possible.
func newFleet(ctx context.Context, dir string, s size) (*fleet, error) {
	f := &fleet{size: s}
	if err := f.up(ctx, dir); err != nil {
		return nil, errors.Join(err, f.close())
	}
	return f, nil
}

func (f *fleet) up(ctx context.Context, dir string) (err error) {
	if f.dir, err = os.MkdirTemp(dir, "sim"); err != nil { // short: paths of sockets are limited
		return err
	}
	memory := "/dev/shm"
	if _, err := os.Stat(memory); err != nil {
		memory = f.dir
	}
	if f.stores, err = os.MkdirTemp(memory, "drover-sim"); err != nil {
		return err
	}
	ca, token, err := f.first()
	if err != nil {
		return err
	}
	for len(f.members) < f.controllers {
		if err := f.join(ctx, token); err != nil {
			return err
		}
	}
	if err := f.voters(ctx); err != nil {
		return err
	}
	return f.populate(ctx, ca)
}

func (f *fleet) newMember() (*member, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	name := string(rune('a' + len(f.members)))
	dir := filepath.Join(f.dir, name)
	m := &member{name: name, part: controllerPart{DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"), Listen: addr,
		Debug: filepath.Join(dir, "debug"), Log: filepath.Join(f.dir, name+".log")}}
	m.api, m.dbg = overSocket(unixsock.File(m.part.RunDir)), overSocket(m.part.Debug)
	return m, errors.Join(os.MkdirAll(dir, 0o700), l.Close())
}

func (f *fleet) start(m *member) (err error) {
	_ = os.Remove(m.part.Debug)
	m.proc, err = startPart("controller", m.part)
	return err
}

// first returns the controller in which the fleet's state is planted.
func (f *fleet) first() (*pki.Authority, pki.Token, error) {
	m, err := f.newMember()
	if err != nil {
		return nil, pki.Token{}, err
	}
	if _, err := bootstrap.Up(bootstrap.Options{DataDir: m.part.DataDir, NodeName: m.name, Hosts: []string{"127.0.0.1"},
		Controller: m.part.Listen, Pool: "10.0.0.0/8", Now: time.Now()}); err != nil {
		return nil, pki.Token{}, err
	}
	ca, err := authority(m.part.DataDir)
	if err != nil {
		return nil, pki.Token{}, err
	}
	token, err := pki.NewToken(pki.Pin(ca.Cert.Raw))
	if err != nil {
		return nil, pki.Token{}, err
	}
	if err := plant(m.part.DataDir, m.part.Listen, f.nodes, f.tasks, token); err != nil {
		return nil, pki.Token{}, err
	}
	if err := f.start(m); err != nil {
		return nil, pki.Token{}, err
	}
	f.members = append(f.members, m)
	return ca, token, nil
}

func (f *fleet) join(ctx context.Context, token pki.Token) error {
	m, err := f.newMember()
	if err != nil {
		return err
	}
	if err := identity.Join(ctx, identity.JoinOptions{DataDir: m.part.DataDir, Token: token, Addr: f.members[0].part.Listen, NodeName: m.name,
		Hosts: []string{"127.0.0.1"}, Agent: "127.0.0.1:1", Controller: m.part.Listen, Now: time.Now()}); err != nil {
		return err
	}
	if err := f.start(m); err != nil {
		return err
	}
	f.members = append(f.members, m)
	return nil
}

// populate starts the agents, and returns once they run all their tasks.
func (f *fleet) populate(ctx context.Context, ca *pki.Authority) error {
	key, err := x509.MarshalPKCS8PrivateKey(ca.Key)
	if err != nil {
		return err
	}
	cluster, err := pki.LoadFiles(identity.ControllerPKI(f.members[0].part.DataDir))
	if err != nil {
		return err
	}
	p := agentsPart{Dir: f.stores, Agents: f.nodes, Cluster: cluster.Principal.Cluster, CA: ca.Cert.Raw, CAKey: key,
		Debug: filepath.Join(f.dir, "agents"), Log: filepath.Join(f.dir, "agents.log")}
	for _, m := range f.members {
		p.Controllers = append(p.Controllers, m.part.Listen)
	}
	if f.agents, err = startPart("agents", p); err != nil {
		return err
	}
	f.debug = overSocket(p.Debug)
	_, err = f.settle(ctx, time.Time{})
	return err
}

// settle waits until each agent has a session that began after since, and runs all of
// its tasks. It returns how long the agents had theirs, all together.
func (f *fleet) settle(ctx context.Context, since time.Time) (held time.Duration, err error) {
	from := int64(0)
	if !since.IsZero() {
		from = since.UnixNano()
	}
	last := time.Now()
	err = poll(ctx, "all agents to have a session and run their tasks", 50*time.Millisecond, func() (bool, error) {
		var s agentStats
		err := ask(ctx, f.debug, http.MethodGet, fmt.Sprintf("/stats?since=%d", from), nil, &s)
		now := time.Now()
		held, last = held+now.Sub(last)*time.Duration(s.Synced), now
		if err == nil {
			err = fmt.Errorf("%d of %d agents have one, and %d of %d tasks run", s.Synced, f.nodes, s.Started, f.tasks)
		}
		return s.Synced == f.nodes && s.Started >= f.tasks, err
	})
	return held, err
}

// roles returns the controllers' roles as known to one of them, by name.
func (m *member) roles(ctx context.Context) (map[string]dv1.ControllerInfo_Role, error) {
	resp, err := dv1connect.NewControllersClient(m.api, "http://sim").List(ctx, connect.NewRequest(&dv1.ListControllersRequest{}))
	if err != nil {
		return nil, err
	}
	out := map[string]dv1.ControllerInfo_Role{}
	for _, c := range resp.Msg.Controllers {
		out[c.Name] = c.Role
	}
	return out, nil
}

// leader returns the controller that leads.
func (f *fleet) leader(ctx context.Context) (leader *member, err error) {
	err = poll(ctx, "a leader", 50*time.Millisecond, func() (bool, error) {
		var last error
		for _, m := range f.members {
			if m.proc == nil {
				continue
			}
			roles, err := m.roles(ctx)
			last = errors.Join(last, err)
			for name, role := range roles {
				if role == dv1.ControllerInfo_LEADER {
					leader = f.named(name)
				}
			}
		}
		return leader != nil && leader.proc != nil, last
	})
	return leader, err
}

func (f *fleet) named(name string) *member {
	for _, m := range f.members {
		if m.name == name {
			return m
		}
	}
	return nil
}

func (f *fleet) voters(ctx context.Context) error {
	return poll(ctx, "that all controllers vote", 50*time.Millisecond, func() (bool, error) {
		roles, err := f.members[0].roles(ctx)
		n := 0
		for _, role := range roles {
			if role == dv1.ControllerInfo_LEADER || role == dv1.ControllerInfo_VOTER {
				n++
			}
		}
		return n == f.controllers, err
	})
}

// close ends all processes and removes what they left.
func (f *fleet) close() error {
	var errs []error
	if f.agents != nil {
		f.agents.kill()
	}
	for _, m := range f.members {
		if m.proc != nil {
			m.proc.kill()
		}
	}
	for _, d := range []string{f.dir, f.stores} {
		if d != "" {
			errs = append(errs, os.RemoveAll(d))
		}
	}
	return errors.Join(errs...)
}

// pollFor bounds how long a fleet may take to reach a state.
const pollFor = 10 * time.Minute

// poll polls until the condition holds: other processes have no event to wait for.
func poll(ctx context.Context, what string, every time.Duration, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, pollFor)
	defer cancel()
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		is, err := ok()
		if is {
			return nil
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("waiting for %s: %w", what, ctx.Err()), err)
		}
	}
}

func overSocket(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 128, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
}

// ask sends one request and decodes the response into out, unless that is nil.
func ask(ctx context.Context, c *http.Client, method, path string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://sim"+path, strings.NewReader(string(body)))
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode >= 300:
		return fmt.Errorf("%s %s: %s: %s", method, (&url.URL{Path: path}).Path, resp.Status, strings.TrimSpace(string(b)))
	case out == nil:
		return nil
	}
	return json.Unmarshal(b, out)
}
