package dispatch

import (
	"bytes"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

// A node of many tasks with large specs holds a session: each spec comes once, in
// parts that its agent reads, and a later one comes as ever.
func TestALargeSyncComesInParts(t *testing.T) {
	for _, c := range []struct{ tasks, specs, tombs, most int }{
		{tasks: 90, specs: 1, most: 1},
		{tasks: 5000, specs: 1, tombs: 5000, most: 6},
		{tasks: 100, specs: 100, most: 51},
		{tasks: 0, specs: 0, most: 1},
	} {
		t.Run(fmt.Sprintf("%d tasks of %d specs", c.tasks, c.specs), func(t *testing.T) {
			f, open := start(t, "n1")
			body := bytes.Repeat([]byte("x"), 190<<10)
			effects := []*dv1.Effect{{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "n1", Name: "a"}}}}
			for i := range c.specs {
				effects = append(effects, &dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: tid(i), Digest: "sha256:d", Body: body}}})
			}
			for i := range c.tasks {
				effects = append(effects, &dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(i), Name: fmt.Sprint("t", i), NodeId: "n1", SpecId: tid(i * 7 % c.specs)}}})
			}
			for i := range c.tombs {
				effects = append(effects, &dv1.Effect{Of: &dv1.Effect_Tombstone{Tombstone: &dv1.Tombstone{TaskId: tid(1e6 + i), NodeId: "n1"}}})
			}
			f.put(effects...)
			st := open()
			if err := st.Send(hello(1)); err != nil {
				t.Fatal(err)
			}
			tasks, tombs, specs, n := map[string]bool{}, 0, 0, 0
			for more := true; more; n++ {
				y := sync1(t, st)
				if err := st.Send(&dv1.FromAgent{Of: &dv1.FromAgent_Beat{Beat: &dv1.Beat{}}}); err != nil {
					t.Fatal(err)
				}
				if size := proto.Size(y); size > maxPart+200<<10 {
					t.Fatalf("part %d is of %d bytes", n, size)
				}
				if !y.Full || y.Part != uint32(n) || y.Index != 1 {
					t.Fatalf("part %d is part %d of sync %d, full %v", n, y.Part, y.Index, y.Full)
				}
				here := map[string]bool{}
				for _, s := range y.Specs {
					here[string(s.Id)] = true
				}
				for _, a := range y.Tasks {
					if !here[string(a.Task.SpecId)] || a.Spec != nil {
						t.Fatalf("part %d has a task without its spec", n)
					}
					tasks[string(a.Task.Id)] = true
				}
				if len(y.Specs) > 0 && (len(y.Sources) != 1 || y.Sources[0].Digest != "sha256:d") {
					t.Fatalf("part %d says of images %v", n, y.Sources)
				}
				tombs, specs, more = tombs+len(y.Tombstones), specs+len(y.Specs), y.More
			}
			if len(tasks) != c.tasks || tombs != c.tombs || n > c.most || specs > c.specs+n-1 {
				t.Fatalf("%d tasks, %d tombstones, %d specs in %d parts", len(tasks), tombs, specs, n)
			}
			f.put(&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(2e6), NodeId: "n1", Name: "late"}}})
			if y := sync1(t, st); y.Full || y.Part != 0 || y.More || len(y.Tasks) != 1 {
				t.Fatalf("the next sync is %v", y)
			}
			_ = st.CloseRequest()
		})
	}
}

// However much there is, no part of it is too large.
func TestNoPartIsTooLarge(t *testing.T) {
	const tasks = 1000
	f := newFakeLog()
	body := bytes.Repeat([]byte("x"), 190<<10)
	for i := range tasks {
		f.put(&dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: tid(i), Body: body}}},
			&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(i), Name: fmt.Sprint("t", i), NodeId: "n1", SpecId: tid(i)}}})
	}
	parts := f.hub.begin().next(newSession("n1", nil), true, 0)
	specs, named := 0, 0
	for i, y := range parts {
		if size := proto.Size(y); size > maxPart+200<<10 || y.Part != uint32(i) || y.More != (i < len(parts)-1) {
			t.Fatalf("part %d of %d: %d bytes, part %d, more %v", i, len(parts), size, y.Part, y.More)
		}
		specs, named = specs+len(y.Specs), named+len(y.Tasks)
	}
	if specs != tasks || named != tasks {
		t.Fatalf("%d specs, %d tasks in %d parts", specs, named, len(parts))
	}
}

// A first sync leaves out what the hello said is there: specs, and grants for images. What
// comes later does not count on it.
func TestAFirstSyncLeavesOutWhatTheNodeHas(t *testing.T) {
	f, open := start(t, "n1")
	f.hub.o.Grant = func(string, string) ([]byte, error) { return []byte("may read"), nil }
	f.hub.end(f.hub.term.Load())
	f.hub.begin()
	effects := []*dv1.Effect{{Of: &dv1.Effect_Node{Node: &dv1.Node{Id: "n1", Name: "a"}}}}
	for i := range 4 {
		effects = append(effects, &dv1.Effect{Of: &dv1.Effect_Spec{Spec: &dv1.Spec{Id: tid(i), Digest: fmt.Sprint("image", i%2)}}},
			&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(i), Name: fmt.Sprint("t", i), NodeId: "n1", SpecId: tid(i)}}})
	}
	f.put(effects...)
	st := open()
	said := hello(1)
	said.GetHello().Specs = [][]byte{tid(0), tid(3), tid(9)}
	said.GetHello().Inventory = &dv1.Observation{Full: true, Images: []*dv1.ImageStatus{{Digest: "image0"}}}
	if err := st.Send(said); err != nil {
		t.Fatal(err)
	}
	shown := func(y *dv1.Sync) (out string) {
		for _, a := range y.Tasks {
			out += " " + a.Task.Name
		}
		for _, s := range y.Specs {
			out += fmt.Sprintf(" %.5s", s.Id)
		}
		for _, s := range y.Sources {
			out += fmt.Sprintf(" %s:%s", s.Digest, s.Grant)
		}
		return out
	}
	if got, want := shown(sync1(t, st)), " t0 t1 t2 t3 task1 task2 image1:may read image0:"; got != want {
		t.Errorf("the first sync is %q, want %q", got, want)
	}
	f.put(&dv1.Effect{Of: &dv1.Effect_Task{Task: &dv1.Task{Id: tid(7), Name: "t7", NodeId: "n1", SpecId: tid(0)}}})
	if got, want := shown(sync1(t, st)), " t7 task0 image0:"; got != want {
		t.Errorf("the next sync is %q, want %q", got, want)
	}
	_ = st.CloseRequest()
}
