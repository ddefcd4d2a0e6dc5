package state

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"
	"time"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// crowd is a state of many tasks: 100 of each spec, evenly on the nodes.
func crowd(t testing.TB, tasks, nodes int) *Snapshot {
	t.Helper()
	x := NewTxn(NewStore().Snapshot())
	var all []*dv1.Effect
	for i := range nodes {
		all = append(all, &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: fmt.Sprintf("n%05d", i), Name: fmt.Sprint("host-", i)}}})
	}
	for i := range tasks {
		spec := bytes32("spec", i/100)
		if i%100 == 0 {
			all = append(all, &dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: spec, Digest: "sha256:1", Image: "alpine",
				Body: []byte(`{"Image":"alpine","HostConfig":{"MemoryReservation":1048576,"PortBindings":{"80/tcp":[{"HostPort":"8080"}]}}}`)}}})
		}
		all = append(all, &dv1.Effect{Of: &dv1.Effect_Run{Run: &dv1.Run{Id: bytes32("run", i), SpecId: spec}}},
			&dv1.Effect{Of: &dv1.Effect_Task{Task: benchTask(i, nodes)}})
	}
	if err := x.Apply(all...); err != nil {
		t.Fatal(err)
	}
	return x.View()
}

func benchTask(i, nodes int) *dv1.Task {
	return &dv1.Task{Id: bytes32("task", i), RunId: bytes32("run", i), SpecId: bytes32("spec", i/100), Name: fmt.Sprint("web-", i), Created: int64(i),
		NodeId: fmt.Sprintf("n%05d", i%nodes), Desired: dv1.Desired_RUNNING, Attempt: 1, Started: 5, Ports: []*dv1.Port{{Proto: "tcp", Host: 8080, Container: 80}}}
}

// bytes32 is an id: spread, as random ones are.
func bytes32(kind string, n int) []byte {
	return fmt.Appendf(nil, "%-32s", fmt.Sprintf("%08x-%s", uint32(n)*2654435761, kind))[:32]
}

// A copy that nothing is written to, and one with a task's start.
func BenchmarkTxn(b *testing.B) {
	s := crowd(b, 100_000, 1000)
	b.Run("copy", func(b *testing.B) {
		defer cpu(b)()
		for b.Loop() {
			NewTxn(s)
		}
	})
	b.Run("start", func(b *testing.B) {
		t := benchTask(7, 1000)
		t.Started = 9
		e := &dv1.Effect{Of: &dv1.Effect_Task{Task: t}}
		defer cpu(b)()
		for b.Loop() {
			if err := NewTxn(s).Apply(e); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("create", func(b *testing.B) {
		t := benchTask(7, 1000)
		t.Id, t.Name = bytes32("new", 1), "new"
		e := &dv1.Effect{Of: &dv1.Effect_Task{Task: t}}
		defer cpu(b)()
		for b.Loop() {
			if err := NewTxn(s).Apply(e); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkSnapshotFile(b *testing.B) {
	s := crowd(b, 100_000, 1000)
	var file bytes.Buffer
	if err := s.Write(&file); err != nil {
		b.Fatal(err)
	}
	b.Run("write", func(b *testing.B) {
		defer cpu(b)()
		for b.Loop() {
			if err := s.Write(&bytes.Buffer{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("read", func(b *testing.B) {
		defer cpu(b)()
		for b.Loop() {
			if _, err := Read(bytes.NewReader(file.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// cpu reports the processor's time besides: others' load is not in it.
func cpu(b *testing.B) func() {
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	return func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") }
}
