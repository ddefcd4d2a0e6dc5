package root

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/docker/cli/cli"
)

// What the fleet failed at is 125 and a sentence, whatever the container's code,
// and a refusal keeps docker's code and words.
func TestTheFleetsFailuresAre125(t *testing.T) {
	lost := errors.New("the rest of the output is not there any more")
	refused := cli.StatusError{StatusCode: 127, Status: "executable file not found"}
	silent := fmt.Errorf("no controller of the fleet answers: %w", errdefs.ErrUnavailable)
	for _, c := range []struct {
		name, command string
		err, lost     error
		code          int
		words         string
	}{
		{"all well", "run", nil, nil, 0, ""},
		{"the container's code", "run", cli.StatusError{StatusCode: 7}, nil, 7, ""},
		{"output lost of a container that ended well", "run", nil, lost, 125, "not there any more"},
		{"output lost of one that did not", "attach", cli.StatusError{StatusCode: 7}, lost, 125, "not there any more"},
		{"output lost, as the command says too", "logs", lost, lost, 125, "not there any more"},
		{"a start that was refused", "run", refused, lost, 127, "executable file not found"},
		{"no controller for a run", "run", silent, nil, 125, "no controller"},
		{"no controller for anything else", "ps", silent, nil, 1, "no controller"},
	} {
		a := newApp("test")
		a.name, a.lost = c.command, func() error { return c.lost }
		err := a.outcome(c.err, false)
		code := 0
		if err != nil {
			code = 1
		}
		var status cli.StatusError
		if errors.As(err, &status) && status.StatusCode != 0 {
			code = status.StatusCode
		}
		if code != c.code || !strings.Contains(a.session.Explain(err), c.words) {
			t.Errorf("%s: exit code %d and %q, not %d and %q", c.name, code, a.session.Explain(err), c.code, c.words)
		}
	}
}
