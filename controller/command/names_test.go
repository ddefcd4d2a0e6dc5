package command

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	dv1 "github.com/drover/drover/pkg/api/v1"
)

func TestValidNamesAreDockers(t *testing.T) {
	rule := regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)
	names := []string{"", "a", "web-1", "a_b.c-d", "-a", ".a", "_a", "a/b", "a b", "a\n", "\na", "é", "aé", "a\x00", strings.Repeat("a", 1000)}
	for c := range 256 {
		names = append(names, string([]byte{byte(c)}), string([]byte{'a', byte(c)}), string([]byte{'a', byte(c), 'b'}))
	}
	for _, name := range names {
		if got, want := validName(name), rule.MatchString(name); got != want {
			t.Errorf("%q: %t, want %t", name, got, want)
		}
	}
}

// Of the candidates the first that is free is taken: by no task, and no run's name or
// that of one of its slots.
func TestWhichCandidateIsTaken(t *testing.T) {
	f := newFleet(t, "10.0.0.0/8", "a")
	created := func(n byte, name string, candidates ...string) *dv1.CommandResult {
		id := func(of byte) []byte { return []byte(strings.Repeat(string([]byte{of}), 32)) }
		return f.do(&dv1.Command{Of: &dv1.Command_Create{Create: &dv1.CreateRun{RunId: id(n), TaskIds: [][]byte{id(n)}, Name: name, NameCandidates: candidates,
			Spec: &dv1.Spec{Body: []byte(`{"Image":"alpine"}`), Image: "alpine"}}}})
	}
	created(1, "able")
	for i, c := range []struct {
		candidates []string
		want       string
	}{
		{[]string{"able", "brave", "calm"}, "brave"},
		{[]string{"able", "brave", "no name", "calm"}, "calm"},
		{[]string{"able", "brave", "calm"}, "0c0c0c0c0c0c"},
		{nil, "0d0d0d0d0d0d"},
	} {
		res := created(byte(10+i), "", c.candidates...)
		task := f.store.Snapshot().Task(res.TaskId)
		if task.GetName() != c.want {
			t.Errorf("of %q it has the name %q, want %q (%v)", c.candidates, task.GetName(), c.want, res.Error)
		}
	}
	for name, want := range map[string]dv1.Error_Kind{"able": dv1.Error_NAME_TAKEN, "/brave": dv1.Error_NAME_TAKEN, "no name": dv1.Error_INVALID, "0c0c0c0c0c0c": dv1.Error_NAME_TAKEN} {
		if res := created(99, name); res.Error.GetKind() != want {
			t.Errorf("asking for %q is answered with %v, want %v", name, res.Error, want)
		}
	}
}

func TestANodeIsNotRemovedAlongWithItsContainersUnlessThatIsMeant(t *testing.T) {
	f := newFleet(t, "10.210.0.0/16", "a", "b")
	b := f.store.Snapshot().NodeByName("b").Id
	turn := func(l dv1.Node_Liveness) {
		t.Helper()
		f.ok(&dv1.Command{Of: &dv1.Command_SetLiveness{SetLiveness: &dv1.SetLiveness{Nodes: []*dv1.Verdict{{NodeId: b, Liveness: l}}}}})
	}
	rm := &dv1.Command{Of: &dv1.Command_RemoveNode{RemoveNode: &dv1.RemoveNode{NodeId: "b"}}}
	for i, want := range []string{"node b has 1 container, which would be forgotten", "node b has 2 containers, which would be forgotten"} {
		turn(dv1.Node_READY)
		f.ok(create(fmt.Sprint("t-", i), `{"Image":"alpine"}`, "node==b"))
		turn(dv1.Node_SUSPECT)
		f.no(rm, dv1.Error_CONFLICT, want)
	}
	rm.GetRemoveNode().Force = true
	f.ok(rm)
	if n := f.store.Snapshot().Node(b); n != nil {
		t.Errorf("it is still there: %v", n)
	}
}
