package torture

import "testing"

// Rounds that failed once, by what was wrong.
func TestFound(t *testing.T) {
	t.Parallel()
	const seeds = 1_000_000 // which name containers, unlike those of TestRounds
	w := newWorld(t, built(t), 1)
	for i, c := range []struct {
		wrong string
		plan  plan
	}{
		{"a restart was not repeated when its controller died", plan{Op: restart, Point: "network.detach.before", Action: "stop", Pass: 1, Victim: controller}},
		{"a restart that was repeated was waited for without end", plan{Op: restart, Point: "controller.propose.after", Action: "kill", Pass: 1}},
		{"a run was attached to before containerd was back to prepare it", plan{Op: runRemoved, Point: "session.sync.taken", Action: "stop", Pass: 1, Victim: containerd}},
		{"what an interrupted start had created was removed as what the attempt before it held", plan{Op: restart, Point: "engine.start.before", Action: "kill", Pass: 1}},
		{"an exec whose client left before it was registered was neither started nor deleted", plan{Op: execute, Point: "engine.exec.before", Action: "stop", Pass: 1, Victim: controller}},
	} {
		t.Run(c.wrong, func(t *testing.T) {
			o, err := w.play(uint64(seeds+i), c.plan)
			if err != nil || !o.fired {
				t.Errorf("%v: reached: %v, answered: %v\n%v", c.plan, o.fired, o.Result, err)
			}
		})
	}
	w.end()
}
