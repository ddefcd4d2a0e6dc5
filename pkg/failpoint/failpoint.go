// Package failpoint marks the places in the code where tests end, stop or delay the
// process, or fail a step. It does so only when built with the tag failpoints: in other
// builds its functions are empty, and the compiler removes the calls together with the
// names. Which failpoints are armed when is up to the tests.
//
// With the tag, DROVER_FAILPOINTS arms them:
//
//	DROVER_FAILPOINTS="engine.attempt.before=kill;shims.exec.after=sleep(50ms)"
//
// Each is a name of names.txt and an action: kill (SIGKILL to the own process), stop
// (SIGSTOP), sleep(DURATION), or error(TEXT) where the caller can return an error. ACTION@N
// is taken at the N-th pass only, others at each.
//
// DROVER_FAILPOINTS=@DIR reads DIR/armed at each pass instead, so that a test arms processes
// that run. What is armed there happens once, in one of all processes: that one renames the
// file to DIR/fired first. Passes are counted from when the content of the file changed, and
// DIR/passed/NAME is created for each failpoint that was passed.
package failpoint

// Env is the environment variable that arms failpoints.
const Env = "DROVER_FAILPOINTS"

// Files below the directory of DROVER_FAILPOINTS=@DIR.
const (
	Armed  = "armed"
	Fired  = "fired"
	Passed = "passed"
)
