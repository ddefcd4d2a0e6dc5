package cgroup

import (
	"math"
	"strings"

	"github.com/moby/moby/api/types/container"
)

// unifiedMemory are the names of memory.stat that docker reports of version 2.
var unifiedMemory = []string{"anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped", "file_dirty", "file_writeback", "anon_thp",
	"inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable", "slab_reclaimable", "slab_unreclaimable", "pgfault", "pgmajfault",
	"workingset_refault", "workingset_activate", "workingset_nodereclaim", "pgrefill", "pgscan", "pgsteal", "pgactivate", "pgdeactivate", "pglazyfree",
	"pglazyfreed", "thp_fault_alloc", "thp_collapse_alloc"}

// unified reads a cgroup of version 2, as in the kernel's admin-guide/cgroup-v2.
func (r *reader) unified(s *container.StatsResponse) {
	const microsecond = 1000
	cpu := r.pairs("", "cpu.stat")
	s.CPUStats.CPUUsage = container.CPUUsage{TotalUsage: cpu["usage_usec"] * microsecond, UsageInUsermode: cpu["user_usec"] * microsecond, UsageInKernelmode: cpu["system_usec"] * microsecond}
	s.CPUStats.ThrottlingData = container.ThrottlingData{Periods: cpu["nr_periods"], ThrottledPeriods: cpu["nr_throttled"], ThrottledTime: cpu["throttled_usec"] * microsecond}

	if all := r.pairs("", "memory.stat"); len(all) > 0 {
		kept := make(map[string]uint64, len(unifiedMemory))
		for _, name := range unifiedMemory {
			kept[name] = all[name]
		}
		s.MemoryStats = container.MemoryStats{Stats: kept, Usage: r.number("", "memory.current", 0), Limit: r.number("", "memory.max", math.MaxUint64),
			Failcnt: r.pairs("", "memory.events")["oom"]}
	}
	s.PidsStats = container.PidsStats{Current: r.number("", "pids.current", 0), Limit: r.number("", "pids.max", 0)}
	s.BlkioStats.IoServiceBytesRecursive = r.transfers()
}

// transfers reads lines of "8:0 rbytes=4096 wbytes=0 rios=1 …".
func (r *reader) transfers() []container.BlkioStatEntry {
	out := []container.BlkioStatEntry{}
	for line := range strings.Lines(r.text("", "io.stat")) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue // a device that did nothing
		}
		read, written := r.device(fields[0]), r.device(fields[0])
		read.Op, written.Op = "read", "write"
		for _, f := range fields[1:] {
			switch name, n, _ := strings.Cut(f, "="); name {
			case "rbytes":
				read.Value = r.parse(n)
			case "wbytes":
				written.Value = r.parse(n)
			}
		}
		out = append(out, read, written)
	}
	return out
}
