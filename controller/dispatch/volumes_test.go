package dispatch

import (
	"bytes"
	"slices"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// A node is told of the volumes that its tasks mount, and of removals until it has
// acknowledged them; of other nodes' it is told nothing.
func TestANodeIsToldOfItsVolumes(t *testing.T) {
	f, open := start(t, "n1")
	data, logs, gone, others := tid(1), tid(2), tid(3), tid(4)
	volume := func(id []byte, name, home string) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Volume{Volume: &dv1.Volume{Id: id, Name: name, Home: home, Options: map[string]string{"o": name}}}}
	}
	task := func(id int, node string, mounts ...[]byte) *dv1.Effect {
		m := &dv1.Task{Id: tid(id), Name: string(rune('a' + id%26)), NodeId: node}
		for _, v := range mounts {
			m.Mounts = append(m.Mounts, &dv1.Mount{VolumeId: v, Target: "/x"})
		}
		return &dv1.Effect{Of: &dv1.Effect_Task{Task: m}}
	}
	removal := func(id []byte, node string) *dv1.Effect {
		return &dv1.Effect{Of: &dv1.Effect_Tombstone{Tombstone: &dv1.Tombstone{VolumeId: id, NodeId: node}}}
	}
	f.put(&dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "n1", Name: "a"}}}, &dv1.Effect{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "n2", Name: "b"}}},
		volume(data, "data", "n1"), volume(logs, "logs", "n1"), task(10, "n1", data, logs, data), task(11, "n1"), task(12, "n2", data), removal(gone, "n1"), removal(others, "n2"))
	st := open()
	if err := st.Send(hello(1)); err != nil {
		t.Fatal(err)
	}
	y := sync1(t, st)
	told := map[string][]string{}
	for _, a := range y.Tasks {
		for _, v := range a.Volumes {
			told[a.Task.Name] = append(told[a.Task.Name], v.Name+" "+v.Options["o"])
		}
	}
	if len(y.Tasks) != 2 || len(told) != 1 || !slices.Equal(told["k"], []string{"data data", "logs logs"}) {
		t.Errorf("of %d tasks it is told %v", len(y.Tasks), told)
	}
	if len(y.Tombstones) != 0 || len(y.VolumesRemoved) != 1 || !bytes.Equal(y.VolumesRemoved[0].VolumeId, gone) {
		t.Errorf("of removals it is told %v, %v", y.Tombstones, y.VolumesRemoved)
	}
	f.put(removal(data, "n1"), removal(logs, "n2"))
	if y := sync1(t, st); y.Full || len(y.VolumesRemoved) != 1 || !bytes.Equal(y.VolumesRemoved[0].VolumeId, data) {
		t.Errorf("the next sync is %v", y)
	}
	// What it acknowledges is gone, but for what is another node's.
	if err := st.Send(&dv1.FromAgent{Of: &dv1.FromAgent_Acks{Acks: &dv1.Acks{Removed: [][]byte{gone, data, logs, others}}}}); err != nil {
		t.Fatal(err)
	}
	for c := range f.got {
		if a := c.GetAckTombstones(); a != nil {
			if a.NodeId != "n1" || !slices.EqualFunc(a.TaskIds, [][]byte{data, gone}, bytes.Equal) {
				t.Errorf("acknowledged is %v", a)
			}
			break
		}
	}
	_ = st.CloseRequest()
}
