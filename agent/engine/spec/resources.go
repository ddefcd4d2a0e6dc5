package spec

import (
	"strings"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func resources(s *specs.Spec, h *container.HostConfig) {
	r := s.Linux.Resources
	r.Memory, r.CPU = memory(h), cpu(h)
	if h.PidsLimit != nil && *h.PidsLimit != 0 {
		r.Pids = &specs.LinuxPids{Limit: h.PidsLimit}
	}
	for _, u := range h.Ulimits {
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{
			Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	if h.OomScoreAdj != 0 {
		s.Process.OOMScoreAdj = &h.OomScoreAdj
	}
}

// memory returns nil if no limit is requested. As in docker, memory and swap together
// are limited to twice the memory limit by default.
func memory(h *container.HostConfig) *specs.LinuxMemory {
	m := specs.LinuxMemory{}
	if h.Memory > 0 {
		swap := h.MemorySwap
		if swap == 0 {
			swap = 2 * h.Memory
		}
		m.Limit, m.Swap = &h.Memory, &swap
	}
	if h.MemoryReservation > 0 {
		m.Reservation = &h.MemoryReservation
	}
	if p := h.MemorySwappiness; p != nil && *p >= 0 { // -1 is docker's default
		swappiness := uint64(*p)
		m.Swappiness = &swappiness
	}
	if h.OomKillDisable != nil && *h.OomKillDisable {
		m.DisableOOMKiller = h.OomKillDisable
	}
	if m == (specs.LinuxMemory{}) {
		return nil
	}
	return &m
}

func cpu(h *container.HostConfig) *specs.LinuxCPU {
	c := &specs.LinuxCPU{Cpus: h.CpusetCpus, Mems: h.CpusetMems}
	if h.CPUShares > 0 {
		shares := uint64(h.CPUShares)
		c.Shares = &shares
	}
	quota, period := h.CPUQuota, uint64(max(0, h.CPUPeriod))
	if h.NanoCPUs > 0 {
		period = 100_000
		quota = h.NanoCPUs * int64(period) / 1e9
	}
	if quota != 0 {
		c.Quota = &quota
	}
	if period != 0 {
		c.Period = &period
	}
	return c
}
