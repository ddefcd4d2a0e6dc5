package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
)

// tree makes a host whose cgroups have these files.
func tree(t *testing.T, files map[string]string) Host {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Host{Root: root, Memory: 1 << 30}
}

var version1 = map[string]string{
	"cpuacct/d/c/cpuacct.usage_percpu":                    "100 250 \n",
	"cpuacct/d/c/cpuacct.stat":                            "user 3\nsystem 2\n",
	"cpu/d/c/cpu.stat":                                    "nr_periods 7\nnr_throttled 5\nthrottled_time 4000\n",
	"memory/d/c/memory.stat":                              "cache 10\nrss 20\ninactive_file 3\nhierarchical_memory_limit 9\ntotal_cache 11\ntotal_inactive_file 4\nrecent_rotated_anon 1\n",
	"memory/d/c/memory.usage_in_bytes":                    "4096\n",
	"memory/d/c/memory.max_usage_in_bytes":                "8192\n",
	"memory/d/c/memory.limit_in_bytes":                    "9223372036854771712\n",
	"memory/d/c/memory.failcnt":                           "6\n",
	"pids/d/c/pids.current":                               "2\n",
	"pids/d/c/pids.max":                                   "max\n",
	"blkio/d/c/blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 512\n8:16 Read 1\nTotal 4609\n",
	"blkio/d/c/blkio.throttle.io_serviced_recursive":      "8:0 Read 2\nTotal 2\n",
}

func TestVersion1(t *testing.T) {
	s, err := tree(t, version1).Stats("/d/c")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := s.CPUStats.CPUUsage, (container.CPUUsage{TotalUsage: 350, PercpuUsage: []uint64{100, 250}, UsageInUsermode: 30_000_000, UsageInKernelmode: 20_000_000}); !reflect.DeepEqual(got, want) {
		t.Errorf("CPUs: %+v, want %+v", got, want)
	}
	if got, want := s.CPUStats.ThrottlingData, (container.ThrottlingData{Periods: 7, ThrottledPeriods: 5, ThrottledTime: 4000}); got != want {
		t.Errorf("throttling: %+v, want %+v", got, want)
	}
	m := s.MemoryStats
	if m.Usage != 4096 || m.MaxUsage != 8192 || m.Failcnt != 6 || m.Limit != 1<<30 {
		t.Errorf("memory: %+v", m)
	}
	if m.Stats["cache"] != 10 || m.Stats["total_cache"] != 11 || m.Stats["total_inactive_file"] != 4 || m.Stats["hierarchical_memory_limit"] != 9 || len(m.Stats) != 32 {
		t.Errorf("memory: %v", m.Stats)
	}
	if _, there := m.Stats["recent_rotated_anon"]; there {
		t.Error("a name is there that docker does not have")
	}
	if s.PidsStats != (container.PidsStats{Current: 2}) {
		t.Errorf("processes: %+v", s.PidsStats)
	}
	if got, want := s.BlkioStats.IoServiceBytesRecursive, []container.BlkioStatEntry{{Major: 8, Op: "Read", Value: 4096}, {Major: 8, Op: "Write", Value: 512}, {Major: 8, Minor: 16, Op: "Read", Value: 1}}; !reflect.DeepEqual(got, want) {
		t.Errorf("bytes: %+v, want %+v", got, want)
	}
	if got := s.BlkioStats.IoServicedRecursive; len(got) != 1 || got[0].Value != 2 {
		t.Errorf("operations: %+v", got)
	}
}

func TestVersion2(t *testing.T) {
	h := tree(t, map[string]string{
		"d/c/cpu.stat":       "usage_usec 350\nuser_usec 300\nsystem_usec 50\nnice_usec 0\nnr_periods 7\nnr_throttled 5\nthrottled_usec 4\n",
		"d/c/memory.stat":    "anon 20\nfile 10\ninactive_file 4\nzswap 1\n",
		"d/c/memory.current": "4096\n",
		"d/c/memory.max":     "8192\n",
		"d/c/memory.events":  "low 0\nhigh 0\nmax 9\noom 6\noom_kill 1\n",
		"d/c/pids.current":   "2\n",
		"d/c/pids.max":       "100\n",
		"d/c/io.stat":        "8:0 rbytes=4096 wbytes=512 rios=2 wios=1 dbytes=0 dios=0\n8:16\n7:0 rbytes=1\n",
	})
	h.Unified = true
	s, err := h.Stats("/d/c")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := s.CPUStats.CPUUsage, (container.CPUUsage{TotalUsage: 350_000, UsageInUsermode: 300_000, UsageInKernelmode: 50_000}); !reflect.DeepEqual(got, want) {
		t.Errorf("CPUs: %+v, want %+v", got, want)
	}
	if got, want := s.CPUStats.ThrottlingData, (container.ThrottlingData{Periods: 7, ThrottledPeriods: 5, ThrottledTime: 4000}); got != want {
		t.Errorf("throttling: %+v, want %+v", got, want)
	}
	if m := s.MemoryStats; m.Usage != 4096 || m.Failcnt != 6 || m.Limit != 8192 || m.Stats["inactive_file"] != 4 || len(m.Stats) != len(unifiedMemory) {
		t.Errorf("memory: %+v", m)
	}
	if s.PidsStats != (container.PidsStats{Current: 2, Limit: 100}) {
		t.Errorf("processes: %+v", s.PidsStats)
	}
	want := []container.BlkioStatEntry{{Major: 8, Op: "read", Value: 4096}, {Major: 8, Op: "write", Value: 512}, {Major: 7, Op: "read", Value: 1}, {Major: 7, Op: "write"}}
	if got := s.BlkioStats.IoServiceBytesRecursive; !reflect.DeepEqual(got, want) {
		t.Errorf("bytes: %+v, want %+v", got, want)
	}
}

func TestACgroupThatIsNotThere(t *testing.T) {
	for _, unified := range []bool{false, true} {
		h := tree(t, version1)
		h.Unified = unified
		if _, err := h.Stats("/d/other"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v", err)
		}
	}
}

// A host may lack controllers.
func TestWithoutAController(t *testing.T) {
	s, err := tree(t, map[string]string{"pids/d/c/pids.current": "3\n"}).Stats("/d/c")
	if err != nil || s.PidsStats.Current != 3 || s.MemoryStats.Limit != 0 || s.CPUStats.CPUUsage.TotalUsage != 0 {
		t.Errorf("%+v (%v)", s, err)
	}
}

func TestFilesThatTheKernelDoesNotWrite(t *testing.T) {
	for name, text := range map[string]string{
		"cpuacct/d/c/cpuacct.usage_percpu":                    "100 many",
		"memory/d/c/memory.stat":                              "cache lots\n",
		"memory/d/c/memory.usage_in_bytes":                    "-1",
		"blkio/d/c/blkio.throttle.io_service_bytes_recursive": "sda Read 4096\n",
	} {
		files := map[string]string{}
		for k, v := range version1 {
			files[k] = v
		}
		files[name] = text
		if _, err := tree(t, files).Stats("/d/c"); err == nil || !strings.Contains(err.Error(), "cgroup /d/c") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheSystemsTimeIsThatOfAllCPUs(t *testing.T) {
	var read [2]struct {
		earliest, latest time.Time
		usage            uint64
	}
	cpus := uint32(0)
	for i := range read {
		var err error
		read[i].earliest = time.Now()
		if read[i].usage, cpus, err = system(); err != nil || cpus == 0 {
			t.Fatalf("%d CPUs (%v)", cpus, err)
		}
		read[i].latest = time.Now()
	}
	passed := time.Duration(read[1].usage-read[0].usage) / time.Duration(cpus)
	if least, most := read[1].earliest.Sub(read[0].latest), read[1].latest.Sub(read[0].earliest); passed < least || passed > most {
		t.Errorf("%s passed, which was %s at least and %s at most", passed, least, most)
	}
}

func TestListsOfCPUs(t *testing.T) {
	for list, want := range map[string]uint32{"0": 1, "0-1\n": 2, "0-3,5": 5, "0,2,4-7": 6, "": 0, "1-0": 0, "x": 0, "0-": 0} {
		if got, err := count(list); got != want && err == nil || (err == nil) != (want > 0) {
			t.Errorf("%q: %d (%v), want %d", list, got, err, want)
		}
	}
}

func BenchmarkStats(b *testing.B) {
	h := Host{Root: "/sys/fs/cgroup"}
	if _, err := h.Stats("/"); err != nil {
		b.Skip(err)
	}
	for b.Loop() {
		if _, err := h.Stats("/"); err != nil {
			b.Fatal(err)
		}
	}
}
