package engine_test

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/drover/drover/pkg/life"
)

// What a container uses is its own, in all of docker's parts.
func TestStatsOfAContainer(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	const limit, pids = 64 << 20, 50
	most := int64(pids)
	spec := w.spec("while :; do :; done")
	spec.Create.HostConfig.Memory, spec.Create.HostConfig.PidsLimit = limit, &most
	w.prepare(t, e, spec)
	id := spec.ID
	if _, err := e.Start(t.Context(), id, life.First(1), nil); err != nil {
		t.Fatal(err)
	}
	first, err := e.Stats(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	const enough = 50 * time.Millisecond // of a processor
	s := first
	for s.CPUStats.CPUUsage.TotalUsage-first.CPUStats.CPUUsage.TotalUsage < uint64(enough) {
		if s, err = e.Stats(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	used, all := s.CPUStats.CPUUsage.TotalUsage-first.CPUStats.CPUUsage.TotalUsage, s.CPUStats.SystemUsage-first.CPUStats.SystemUsage
	if share := 100 * used * uint64(s.CPUStats.OnlineCPUs) / all; share == 0 || share > 105 {
		t.Errorf("a busy loop uses %d%% of a CPU", share)
	}
	if s.PidsStats != (container.PidsStats{Current: 1, Limit: pids}) {
		t.Errorf("processes: %+v", s.PidsStats)
	}
	if m := s.MemoryStats; m.Limit != limit || m.Usage == 0 || m.Usage > limit || m.Stats["pgfault"]+m.Stats["total_pgfault"] == 0 {
		t.Errorf("memory: %+v", m)
	}
	if _, there := s.Networks["eth0"]; !there || len(s.Networks) != 1 {
		t.Errorf("networks: %+v", s.Networks)
	}
}

// A container that shares another's network has its counters; one with the host's has none.
func TestCountersOfASharedNetwork(t *testing.T) {
	w := newWorld(t)
	e := w.open(t)
	w.pulled(t, e)
	own := w.prepared(t, e, waits)
	for _, c := range []struct {
		of   string
		want int
	}{{"", 1}, {"container:" + own, 1}, {"host", 0}, {"none", 0}} {
		of, want := c.of, c.want
		id := own
		if of != "" {
			spec := w.spec(waits)
			spec.Create.HostConfig.NetworkMode = container.NetworkMode(of)
			w.prepare(t, e, spec)
			id = spec.ID
		}
		if _, err := e.Start(t.Context(), id, life.First(1), nil); err != nil {
			t.Fatal(err)
		}
		if s, err := e.Stats(t.Context(), id); err != nil || len(s.Networks) != want {
			t.Errorf("%q: %+v (%v), want %d", of, s.Networks, err, want)
		}
	}
}
