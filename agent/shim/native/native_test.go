//go:build cgo

package native

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/drover/drover/pkg/testenv"
)

// What its ancestors ignored or blocked ends with a program that has this package.
func TestSignalsAreNeitherIgnoredNorBlocked(t *testing.T) {
	const inside = "NATIVE_TEST_SIGNALS"
	if os.Getenv(inside) != "" {
		out, err := exec.Command("grep", "-E", "Sig(Blk|Ign)", "/proc/self/status").CombinedOutput()
		fmt.Printf("%s%v", out, err)
		return
	}
	c := exec.Command("env", "--ignore-signal", "--block-signal", os.Args[0], "-test.run=^"+t.Name()+"$")
	c.Env = append(os.Environ(), inside+"=1")
	out, err := c.CombinedOutput()
	if want := "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n<nil>"; err != nil || !strings.HasPrefix(string(out), want) {
		t.Errorf("a child has %q (%v)", out, err)
	}
}

// Children that somebody waits for are never taken from him, and those of whom nobody
// knows are reaped, while both come and go.
func TestOrphansAreReapedAndNobodyElse(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) }()
	o, done, over := newOrphans(), make(chan struct{}), make(chan struct{})
	go func() { o.run(done); close(over) }()
	var all sync.WaitGroup
	for n := range 40 {
		all.Go(func() {
			// The grandchild becomes an orphan, and dies before or after its parent.
			c := exec.Command("sh", "-c", "(sleep 0.0"+strconv.Itoa(n%7)+" &) ; exit "+strconv.Itoa(n))
			started := o.starting()
			if err := c.Start(); err != nil {
				started(0)
				t.Error(err)
				return
			}
			started(c.Process.Pid)
			err := c.Wait()
			o.waited(c.Process.Pid)
			if c.ProcessState == nil || c.ProcessState.ExitCode() != n {
				t.Errorf("child %d: %v, %v", n, c.ProcessState, err)
			}
		})
	}
	all.Wait()
	// The last one dies by the end of this: then there is no child left at all.
	last := exec.Command("sh", "-c", "(exec sleep 0.3 & echo $!)")
	started := o.starting()
	out, err := last.Output()
	started(0)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
		_ = unix.Close(fd)
	}
	for unix.Kill(pid, 0) == nil { // until it is reaped, or the test's time is over
		o.woken()
	}
	close(done)
	<-over
	if pid := deadChild(); pid != 0 {
		t.Errorf("child %d was not reaped", pid)
	}
}

func ptr[T any](x T) *T { return &x }

func TestUpdate(t *testing.T) {
	for name, c := range map[string]struct {
		from cgroups.Resources
		json string
		want cgroups.Resources
	}{
		"nothing":             {cgroups.Resources{Memory: 5, CpuShares: 7, CpusetCpus: "1", PidsLimit: ptr[int64](3)}, `{}`, cgroups.Resources{Memory: 5, CpuShares: 7, CpusetCpus: "1", PidsLimit: ptr[int64](3)}},
		"memory":              {cgroups.Resources{Memory: 5, MemorySwap: 9}, `{"memory":{"limit":6}}`, cgroups.Resources{Memory: 6, MemorySwap: 9}},
		"no memory limit":     {cgroups.Resources{Memory: 5, MemorySwap: 9}, `{"memory":{"limit":-1}}`, cgroups.Resources{Memory: -1}},
		"swap and soft limit": {cgroups.Resources{}, `{"memory":{"limit":5,"swap":10,"reservation":2,"checkBeforeUpdate":true}}`, cgroups.Resources{Memory: 5, MemorySwap: 10, MemoryReservation: 2, MemoryCheckBeforeUpdate: true}},
		"quota alone":         {cgroups.Resources{CpuPeriod: 100, CpuQuota: 50}, `{"cpu":{"quota":70}}`, cgroups.Resources{CpuPeriod: 100, CpuQuota: 70}},
		"period alone":        {cgroups.Resources{CpuPeriod: 100, CpuQuota: 50}, `{"cpu":{"period":200}}`, cgroups.Resources{CpuPeriod: 200, CpuQuota: 50}},
		"quota and period":    {cgroups.Resources{}, `{"cpu":{"period":200,"quota":10}}`, cgroups.Resources{CpuPeriod: 200, CpuQuota: 10}},
		"shares and cpus":     {cgroups.Resources{}, `{"cpu":{"shares":1024,"cpus":"0-1","mems":"0"}}`, cgroups.Resources{CpuShares: 1024, CpuWeight: cgroups.ConvertCPUSharesToCgroupV2Value(1024), CpusetCpus: "0-1", CpusetMems: "0"}},
		"idle":                {cgroups.Resources{CpuShares: 5}, `{"cpu":{"idle":1}}`, cgroups.Resources{CPUIdle: ptr[int64](1)}},
		"pids":                {cgroups.Resources{PidsLimit: ptr[int64](3)}, `{"pids":{"limit":8}}`, cgroups.Resources{PidsLimit: ptr[int64](8)}},
		"block devices": {
			cgroups.Resources{BlkioWeight: 10, BlkioWeightDevice: []*cgroups.WeightDevice{cgroups.NewWeightDevice(8, 0, 1, 0)}},
			`{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":2},{"major":8,"minor":16,"weight":3}],"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":9}]}}`,
			cgroups.Resources{
				BlkioWeight: 10, BlkioWeightDevice: []*cgroups.WeightDevice{cgroups.NewWeightDevice(8, 0, 2, 0), cgroups.NewWeightDevice(8, 16, 3, 0)},
				BlkioThrottleReadBpsDevice: []*cgroups.ThrottleDevice{cgroups.NewThrottleDevice(8, 0, 9)},
			},
		},
	} {
		var r specs.LinuxResources
		if err := json.Unmarshal([]byte(c.json), &r); err != nil {
			t.Fatal(err)
		}
		before, _ := json.Marshal(c.from)
		got := c.from
		update(&got, &r)
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		if after, _ := json.Marshal(c.from); string(after) != string(before) {
			t.Errorf("%s: what it came from has changed", name)
		}
	}
}

func TestProcessesThatAreRefused(t *testing.T) {
	for want, p := range map[string]*specs.Process{
		"process property must not be empty": nil,
		"Cwd property must not be empty":     {Args: []string{"x"}},
		"Cwd must be an absolute path":       {Args: []string{"x"}, Cwd: "y"},
		"args must not be empty":             {Cwd: "/"},
		"wrong rlimit value: RLIMIT_X":       {Args: []string{"x"}, Cwd: "/", Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_X"}}},
	} {
		if _, err := newProcess(p); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	p, err := newProcess(&specs.Process{Args: []string{"x"}, Cwd: "/", User: specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{3}}, ConsoleSize: &specs.Box{Width: 80, Height: 25},
		Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 4, Hard: 5}}, Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN"}}})
	if err != nil || p.UID != 1 || p.GID != 2 || !reflect.DeepEqual(p.AdditionalGroups, []int{3}) || p.ConsoleWidth != 80 || p.ConsoleHeight != 25 ||
		p.Rlimits[0].Type != unix.RLIMIT_NOFILE || p.Rlimits[0].Hard != 5 || p.Capabilities.Bounding[0] != "CAP_CHOWN" {
		t.Errorf("%+v (%v)", p, err)
	}
}

// A bundle of which nothing is left is none to stop.
func TestStoppingNothing(t *testing.T) {
	testenv.Root(t)
	dir := t.TempDir()
	if pid, err := Stop(t.Context(), dir, "id"); pid != 0 || err != nil {
		t.Errorf("%d, %v", pid, err)
	}
}
