package network

import (
	"testing"

	"github.com/moby/moby/api/types/container"
)

const titles = "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n"

func TestCountersOfInterfaces(t *testing.T) {
	got, err := parseCounters([]byte(titles + "    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n" +
		"  eth0:1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"))
	want := container.NetworkStats{RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 9, TxPackets: 10, TxErrors: 11, TxDropped: 12}
	if err != nil || len(got) != 2 || got["eth0"] != want || got["lo"] != (container.NetworkStats{}) {
		t.Errorf("%+v (%v)", got, err)
	}
	for _, table := range []string{"eth0: 1 2 3\n", "eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 many\n"} {
		if got, err := parseCounters([]byte(table)); err == nil {
			t.Errorf("%q: %+v", table, got)
		}
	}
}

func FuzzCounters(f *testing.F) {
	f.Add([]byte(titles + "  eth0:1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n"))
	f.Fuzz(func(_ *testing.T, table []byte) { _, _ = parseCounters(table) })
}
