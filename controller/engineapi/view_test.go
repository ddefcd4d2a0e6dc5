package engineapi

import (
	"encoding/json"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/drover/drover/controller/fleet"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

// A container is what the newest life known of it is, whether the log or its agent knows
// that one.
func TestAContainerIsInTheStateOfItsNewestLife(t *testing.T) {
	exit := func(attempt, restarts, code int32) *dv1.Exit {
		return &dv1.Exit{Attempt: attempt, Restarts: restarts, Code: code}
	}
	const active, failed, exited = dv1.Phase_ACTIVE, dv1.Phase_FAILED, dv1.Phase_EXITED
	for what, c := range map[string]struct {
		task *dv1.Task
		st   *dv1.TaskStatus
		want container.ContainerState
		code int32 // of the exit of the attempt, -1 if it has not ended
	}{
		"it runs":                          {&dv1.Task{Attempt: 1, Started: 5}, &dv1.TaskStatus{Attempt: 1, Phase: active}, container.StateRunning, -1},
		"it ended":                         {&dv1.Task{Attempt: 1, Started: 5, Exit: exit(1, 0, 3)}, nil, container.StateExited, 3},
		"it ended, says its agent":         {&dv1.Task{Attempt: 1, Started: 5}, &dv1.TaskStatus{Attempt: 1, Phase: exited, Exit: exit(1, 0, 3)}, container.StateExited, 3},
		"an earlier attempt's status":      {&dv1.Task{Attempt: 2, Started: 5}, &dv1.TaskStatus{Attempt: 1, Phase: exited, Exit: exit(1, 0, 3)}, container.StateRunning, -1},
		"begun anew":                       {&dv1.Task{Attempt: 1, Restarts: 1, Started: 9, Exit: exit(1, 0, 3)}, nil, container.StateRunning, -1},
		"begun anew, says its agent":       {&dv1.Task{Attempt: 1, Started: 5}, &dv1.TaskStatus{Attempt: 1, Restarts: 1, Phase: active, Exit: exit(1, 0, 3)}, container.StateRunning, -1},
		"an earlier life's status":         {&dv1.Task{Attempt: 1, Restarts: 2, Started: 9}, &dv1.TaskStatus{Attempt: 1, Restarts: 1, Phase: exited, Exit: exit(1, 1, 3)}, container.StateRunning, -1},
		"the last life ended":              {&dv1.Task{Attempt: 1, Restarts: 2, Started: 9, Exit: exit(1, 2, 7)}, &dv1.TaskStatus{Attempt: 1, Restarts: 2, Phase: active}, container.StateExited, 7},
		"the last life did not begin":      {&dv1.Task{Attempt: 1, Restarts: 1, Exit: exit(1, 0, 3), Failed: "no"}, nil, container.StateExited, -1},
		"it did not begin, says its agent": {&dv1.Task{Attempt: 1, Restarts: 1, Exit: exit(1, 0, 3)}, &dv1.TaskStatus{Attempt: 1, Restarts: 1, Phase: failed}, container.StateExited, -1},
	} {
		c.task.Id = make([]byte, 32)
		seen := &fleet.Observations{Tasks: map[string]*dv1.TaskStatus{}}
		if c.st != nil {
			seen.Tasks[hexID(c.task)] = c.st
		}
		v := &view{t: c.task, st: current(seen, c.task)}
		if got := v.state(); got != c.want {
			t.Errorf("%s: %s, want %s", what, got, c.want)
		}
		if e := v.exit(); (e == nil) != (c.code < 0) || e != nil && e.Code != c.code {
			t.Errorf("%s: its exit is %v, want %d", what, e, c.code)
		}
	}
}

// A published port that its node did not bind, as in an internal network, is as one that is
// exposed only.
func TestPortsThatAreNotBound(t *testing.T) {
	exposed := &shape{config: container.Config{ExposedPorts: network.PortSet{network.MustParsePort("80/tcp"): {}}}}
	port := func(ip string, host, container uint32) *dv1.Port {
		return &dv1.Port{Ip: ip, Proto: "tcp", Host: host, Container: container}
	}
	for what, c := range map[string]struct {
		ports       []*dv1.Port
		list, shown string
	}{
		"none":          {nil, `[{"IP":"","PrivatePort":80,"Type":"tcp"}]`, `{"80/tcp":null}`},
		"bound":         {[]*dv1.Port{port("", 8080, 80)}, `[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}]`, `{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"}]}`},
		"not bound":     {[]*dv1.Port{port("", 0, 80), port("", 0, 81), port("", 0, 81)}, `[{"IP":"","PrivatePort":80,"Type":"tcp"},{"IP":"","PrivatePort":81,"Type":"tcp"}]`, `{"80/tcp":null,"81/tcp":null}`},
		"one of two":    {[]*dv1.Port{port("127.0.0.1", 0, 80), port("", 8080, 80)}, `[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8080,"Type":"tcp"}]`, `{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"}]}`},
		"not a port":    {[]*dv1.Port{{Proto: "tcp", Host: 1, Container: 99999}}, `[{"IP":"","PrivatePort":80,"Type":"tcp"}]`, `{"80/tcp":null}`},
		"besides those": {[]*dv1.Port{port("", 8443, 443)}, `[{"IP":"","PrivatePort":80,"Type":"tcp"},{"IP":"0.0.0.0","PrivatePort":443,"PublicPort":8443,"Type":"tcp"}]`, `{"443/tcp":[{"HostIp":"0.0.0.0","HostPort":"8443"}],"80/tcp":null}`},
	} {
		v := &view{t: &dv1.Task{Id: make([]byte, 32), Attempt: 1, Started: 5, Ports: c.ports}, shape: exposed}
		list, _ := json.Marshal(v.portSummary())
		shown, _ := json.Marshal(v.portMap())
		if string(list) != c.list || string(shown) != c.shown {
			t.Errorf("%s: listed as %s and inspected as %s, want %s and %s", what, list, shown, c.list, c.shown)
		}
	}
	for _, mode := range []container.NetworkMode{"host", "none", "container:x"} {
		of := *exposed
		of.req.HostConfig = &container.HostConfig{NetworkMode: mode}
		v := &view{t: &dv1.Task{Id: make([]byte, 32), Attempt: 1, Started: 5}, shape: &of}
		if list, shown := v.portSummary(), v.portMap(); len(list)+len(shown) > 0 {
			t.Errorf("of network %s: %v and %v", mode, list, shown)
		}
	}
}
