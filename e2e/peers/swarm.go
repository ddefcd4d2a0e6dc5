package peers

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/drover/drover/e2e/fleet"
)

// Swarm is a swarm whose hosts are all managers.
type Swarm struct {
	Group   *Group
	Engines []*Docker
	f       *fleet.Fleet
}

// StartSwarm starts an engine on each host, and makes them a swarm.
func StartSwarm(t testing.TB, f *fleet.Fleet, hosts []*fleet.Host, g *Group) (*Swarm, error) {
	t.Helper()
	s := &Swarm{Group: g, f: f}
	for _, h := range hosts {
		d, err := StartDocker(t, f, h, g)
		if err != nil {
			return nil, err
		}
		s.Engines = append(s.Engines, d)
	}
	first := s.Engines[0]
	if _, err := first.Run("swarm", "init", "--advertise-addr", first.Host.Addr); err != nil {
		return nil, err
	}
	token, err := first.Run("swarm", "join-token", "-q", "manager")
	if err != nil {
		return nil, err
	}
	for _, d := range s.Engines[1:] {
		if _, err := d.Run("swarm", "join", "--token", strings.TrimSpace(token), "--advertise-addr", d.Host.Addr, first.Host.Addr+":2377"); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Scale creates a service, and waits until all of its replicas run.
func (s *Swarm) Scale(name string, replicas int) error {
	ref := s.f.Registry + "/library/busybox:latest" // of a registry that answers: each start asks it
	if _, err := s.Engines[0].Run("service", "create", "-d", "-q", "--stop-grace-period", "0s", "--name", name,
		"--replicas", strconv.Itoa(replicas), ref, "sleep", "100000"); err != nil {
		return err
	}
	want := fmt.Sprintf("%d/%d", replicas, replicas)
	return until("all replicas of "+name+" run", func() (bool, error) {
		out, err := s.Engines[0].Run("service", "ls", "--format", "{{.Replicas}}")
		return strings.TrimSpace(out) == want, err
	})
}

// Remove removes a service, and waits until its containers are gone.
func (s *Swarm) Remove(name string) error {
	if _, err := s.Engines[0].Run("service", "rm", name); err != nil {
		return err
	}
	return until("the containers of "+name+" are gone", func() (bool, error) {
		for _, d := range s.Engines {
			if ids, err := d.Run("ps", "-aq"); err != nil || ids != "" {
				return false, err
			}
		}
		return true, nil
	})
}

// until polls for what Swarm reports by no event.
func until(what string, ok func() (bool, error)) error {
	const patience = 3 * time.Minute
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		done, err := ok()
		switch {
		case done || err != nil:
			return err
		case time.Now().After(end):
			return fmt.Errorf("not within %v: %s", patience, what)
		}
	}
}

// Leader returns the leading manager, and another one.
func (s *Swarm) Leader() (leader, other *Docker) {
	s.f.Eventually(time.Minute, "Swarm has a leader", func() bool {
		leader, other = nil, nil
		for _, d := range s.Engines {
			if out, _ := d.Run("node", "inspect", "self", "--format", "{{.ManagerStatus.Leader}}"); strings.TrimSpace(out) == "true" {
				leader = d
			} else {
				other = d
			}
		}
		return leader != nil && other != nil
	})
	return leader, other
}

// Write makes a change that goes through raft.
func (d *Docker) Write(name string) error {
	c := d.Command("config", "create", name, "-")
	c.Stdin = strings.NewReader("x")
	_, err := d.Group.Run(c)
	return err
}

// Healthy waits until all managers reach each other.
func (s *Swarm) Healthy() {
	s.f.Eventually(time.Minute, "all managers are reachable", func() bool {
		out, err := s.Engines[0].Run("node", "ls", "--format", "{{.ManagerStatus}}")
		return err == nil && strings.Count(out, "Reachable")+strings.Count(out, "Leader") == len(s.Engines)
	})
}
