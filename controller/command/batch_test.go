package command

import (
	"encoding/binary"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/drover/drover/controller/state"
	dv1 "github.com/drover/drover/pkg/api/v1"
)

func cpuTime() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// What deciding a create costs among those of its entry, at 1,000 nodes: it must not
// depend on how many tasks there are.
func BenchmarkCreates(b *testing.B) {
	const perEntry = 64
	const body = `{"Image":"alpine","Cmd":["sleep","1000"],"Labels":{"app":"x"},"HostConfig":{"NetworkMode":"default"}}`
	number := func(kind byte, n int) []byte {
		out := make([]byte, 32)
		out[0] = kind
		binary.BigEndian.PutUint64(out[1:], uint64(n))
		return out
	}
	for _, tasks := range []int{1000, 100_000} {
		b.Run(fmt.Sprint("tasks=", tasks), func(b *testing.B) {
			x := state.NewTxn(state.NewStore().Snapshot())
			put := func(e ...*dv1.Effect) {
				if err := x.Apply(e...); err != nil {
					b.Fatal(err)
				}
			}
			put(&dv1.Effect{Of: &dv1.Effect_Cluster{Cluster: &dv1.Cluster{Id: "fleet"}}},
				&dv1.Effect{Of: &dv1.Effect_Identity{Identity: &dv1.Identity{Uri: "spiffe://fleet/user/u", Roles: []string{"user"}}}},
				&dv1.Effect{Of: &dv1.Effect_Image{Image: &dv1.Image{Digest: digest}}},
				&dv1.Effect{Of: &dv1.Effect_Tag{Tag: &dv1.Tag{Ref: "docker.io/library/alpine:latest", Digest: digest}}},
				&dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: number('s', 0), Body: []byte(body), Digest: digest}}})
			for n := range 1000 {
				put(&dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: fmt.Sprintf("n%04d", n), Name: fmt.Sprint("host-", n), Liveness: dv1.Node_READY, Availability: dv1.Node_ACTIVE}}})
			}
			for n := range tasks {
				put(&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: number('t', n), RunId: number('r', n), SpecId: number('s', 0), Name: fmt.Sprint("t-", n),
					NodeId: fmt.Sprintf("n%04d", n%1000), Desired: dv1.Desired_RUNNING, Attempt: 1, Started: 1}}})
			}
			batch := NewBatch(x)
			began, done := cpuTime(), 0
			for b.Loop() {
				if done%perEntry == 0 {
					x = state.NewTxn(x.View())
					batch.On(x)
				}
				done++
				n := tasks + done
				effects, r := batch.Decide(&dv1.Command{Principal: "spiffe://fleet/user/u", Of: &dv1.Command_Create{Create: &dv1.CreateRun{RunId: number('r', n), TaskIds: [][]byte{number('t', n)},
					Name: fmt.Sprint("t-", n), Contact: "n0000", Spec: &dv1.Spec{Body: []byte(body), Image: "alpine", Digest: digest}}}}, 1)
				if r.Error != nil {
					b.Fatal(r.Error)
				}
				if err := batch.Apply(effects...); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpuTime()-began)/float64(done)/1e3, "cpu-us/op")
		})
	}
}
